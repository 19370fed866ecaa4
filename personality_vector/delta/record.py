"""``delta.json``: what a saved delta is, and what was measured while it was written."""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from personality_vector.checkpoint import Fingerprint, read_json
from personality_vector.delta.layers import grouped
from personality_vector.delta.lora import Scaling
from personality_vector.errors import CheckpointError

RECORD = "delta.json"
_FORMAT = 2
"""The first format had no number and knew its base by a sample of the weights."""

Storage = Literal["float32", "bfloat16", "lora", "low-rank", "reference"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorRecord(_Frozen):
    """One tensor of a delta.

    Attributes:
        shape: That of the tensor in the base.
        norm: Euclidean norm of the delta before it was stored.
        stored_norm: Euclidean norm of what was stored.
        loss: Norm of stored minus delta, divided by that of the delta; 0 where that is 0.
        zeros: Share of entries that are exactly 0 in the delta; 1 of a tensor without entries.
    """

    shape: tuple[int, ...]
    norm: float
    stored_norm: float
    loss: float
    zeros: float


class ReferenceRecord(_Frozen):
    """The two checkpoints that a delta by reference is read from."""

    base: str
    tuned: str
    tuned_digest: str


class DeltaRecord(_Frozen):
    """The content of ``delta.json``.

    Attributes:
        identity: Identity of the :class:`~personality_vector.delta.Delta`.
        storage: What the files hold.
        rank: Rank of the factors, for ``low-rank`` only.
        adapter: Scaling of the factors, for ``lora`` only.
        reference: The two checkpoints, for ``reference`` only.
        tensors: The tensors by name.
        format: Format of this record.
        hashes: XXH3-128 of every tensor in the files; by reference, of the float64 delta.
        tuned_dtypes: Dtypes of the fine-tuned tensors that can be restored bit for bit.
        exact: Whether there is a list of values that base plus delta does not restore.
        halves: Of half the difference of two deltas, the identities of both.
    """

    format: Literal[2] = 2
    base: Fingerprint
    identity: str
    label: str
    pole: str | None
    storage: Storage
    rank: int | None = None
    adapter: Scaling | None = None
    reference: ReferenceRecord | None = None
    tensors: dict[str, TensorRecord]
    hashes: dict[str, str]
    tuned_dtypes: dict[str, Literal["F64", "F32", "F16", "BF16"]]
    exact: bool
    halves: tuple[str, str] | None = None

    @model_validator(mode="after")
    def _has_what_its_storage_needs(self) -> "DeltaRecord":
        needed = {"low-rank": self.rank, "lora": self.adapter, "reference": self.reference}
        wrong = [
            kind for kind, part in needed.items() if (part is not None) != (kind == self.storage)
        ]
        if wrong:
            raise ValueError(f"storage {self.storage} does not go with the keys of {wrong[0]}")
        return self

    @property
    def total(self) -> "Total":
        """All tensors together."""
        return Total.of(self.tensors.values())

    def totals(self, group: Callable[[str], str]) -> dict[str, "Total"]:
        """The tensors of each group together, from the embedding to the head."""
        groups = grouped(self.tensors, group)
        return {
            key: Total.of([self.tensors[name] for name in names]) for key, names in groups.items()
        }


@dataclass(frozen=True, slots=True)
class Total:
    """Sums up several tensors of a delta.

    Attributes:
        tensors: Number of tensors.
        parameters: Number of entries.
        norm: Euclidean norm over all entries.
        loss: Norm of stored minus delta, divided by ``norm``.
        zeros: Share of entries that are exactly 0.
    """

    tensors: int
    parameters: int
    norm: float
    loss: float
    zeros: float

    @classmethod
    def of(cls, rows: Collection[TensorRecord]) -> "Total":
        """Return the total of these tensors."""
        sizes = [math.prod(row.shape) for row in rows]
        norm = math.hypot(*(row.norm for row in rows))
        lost = math.hypot(*(row.loss * row.norm for row in rows))
        zeros = math.fsum(row.zeros * size for row, size in zip(rows, sizes, strict=True))
        return cls(len(rows), sum(sizes), norm, lost / (norm or 1.0), zeros / (sum(sizes) or 1))

    @property
    def kept(self) -> float:
        """Share of the energy, the squared norm, that storage kept: ``1 - loss**2``."""
        return 1.0 - self.loss**2


def read_record(directory: Path) -> DeltaRecord:
    """Return the record of a saved delta.

    Raises:
        CheckpointError: There is none, it lacks something, or another version wrote it.
    """
    if not (directory / RECORD).is_file():
        raise CheckpointError(f"{directory}: is not a saved delta: it has no {RECORD}")
    table = read_json(directory / RECORD)
    found = table.get("format")
    if found != _FORMAT:
        why = (
            "was saved by an earlier version, which knew its base by a sample of the weights"
            if found is None
            else f"is in format {found}, this version reads format {_FORMAT}"
        )
        raise CheckpointError(f"{directory / RECORD}: {why}; take the delta again with `pvec diff`")
    try:
        return DeltaRecord.model_validate(table)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        wrong = f"lacks {where}" if first["type"] == "missing" else f"{where}: {first['msg']}"
        raise CheckpointError(f"{directory / RECORD}: {wrong}") from error
