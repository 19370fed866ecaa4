"""Delta: a point in weight space relative to one base, lazy, with the algebra of a vector."""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import torch
from jaxtyping import Float
from torch import Tensor

from personality_vector.checkpoint import Checkpoint, Fingerprint
from personality_vector.delta.adapter_config import AdapterConfig
from personality_vector.delta.adapters import open_adapter
from personality_vector.delta.lora import Adapter
from personality_vector.delta.provenance import matched, untied_beside
from personality_vector.delta.sources import (
    Combination,
    Difference,
    TensorSource,
    whole,
)
from personality_vector.delta.storage import open_stored, save_stored, verify
from personality_vector.errors import (
    BaseMismatchError,
    CheckpointError,
    NonFiniteError,
    TensorMismatchError,
    blame,
)
from personality_vector.numeric.parallel import pieces
from personality_vector.traits import Pole


@dataclass(frozen=True)
class Delta:
    """``fine-tuned - base``, tensor by tensor; with a ``pole`` it is a personality vector.

    It is lazy: it holds references and coefficients, and reads one float32 tensor when asked. Sums,
    norms and products are computed from float64 parts. A base tensor that it does not name has a
    delta of zero.

    Attributes:
        source: Where the tensors come from.
        base: The model that it was taken from, and the only one that it can be added to.
        identity: Hex digest of its content, whatever its storage: a delta has the same one saved
            and by reference. It orders terms and seeds their random masks.
        label: Name for messages and reports.
        pole: The pole that it expresses, if any.
        directory: The directory that it was loaded from, if it was saved.
        halves: Of half the difference of two deltas, the identities of both.

    Source:
        Task vectors, Ilharco et al. 2022, arXiv:2212.04089: ``tau = theta_ft - theta_pre``.
    """

    source: TensorSource
    base: Fingerprint
    identity: str
    label: str = ""
    pole: Pole | None = None
    directory: Path | None = field(default=None, compare=False)
    halves: tuple[str, str] | None = field(default=None, compare=False)

    @classmethod
    def between(
        cls,
        base: str | Path | Checkpoint,
        tuned: str | Path | Checkpoint,
        *,
        pole: Pole | str | None = None,
        label: str = "",
        excluded: Callable[[str], bool] = lambda _: False,
    ) -> "Delta":
        """Return ``tuned - base`` by reference to both checkpoints.

        Args:
            base: Directory, Hub id or ``builtin:demo``.
            tuned: A fine-tune of ``base``, given in the same way, with the same names and shapes.
            pole: What it expresses, such as ``extraversion:high``.
            label: Defaults to the pole or the name of the directory.
            excluded: Whether a tensor, by its name, need not fit, as its delta will be left out.

        Raises:
            CheckpointError: Either cannot be read.
            TensorMismatchError: Names, shapes or integer tensors differ.
        """
        start, end = Checkpoint.open(base), Checkpoint.open(tuned)
        start, end = untied_beside(start, end), untied_beside(end, start)
        pole = Pole.parse(pole) if isinstance(pole, str) else pole
        difference = Difference(start, matched(start, end, excluded))
        identity = digest("difference", start.fingerprint.digest, end.fingerprint.digest)
        label = label or (str(pole) if pole else end.path.name)
        return cls(difference, start.fingerprint, identity, label, pole)

    @classmethod
    def from_lora(
        cls,
        adapter: str | Path,
        base: str | Path | Checkpoint | None = None,
        *,
        pole: Pole | str | None = None,
        label: str = "",
        stated: bool = False,
    ) -> "Delta":
        """Return a PEFT adapter as a delta; LoRA is kept factored.

        Args:
            adapter: Directory with ``adapter_config.json`` and ``adapter_model.safetensors``.
            base: The model that it was trained on; by default the one that its config names.
            pole: What it expresses.
            label: Defaults to the pole or the name of the directory.
            stated: Whether to put it on ``base`` even if its config names another model.

        Raises:
            CheckpointError: It is incomplete, contradicts itself, or PEFT cannot merge its type.
            BaseMismatchError: It names another base.
            TensorMismatchError: It does not fit ``base``.
        """
        path = Path(adapter)
        start = Checkpoint.open(base if base is not None else AdapterConfig.read(path).base)
        source = open_adapter(path, start, stated=stated)
        pole = Pole.parse(pole) if isinstance(pole, str) else pole
        identity = digest(*source.content)
        return cls(source, start.fingerprint, identity, label or str(pole or path.name), pole)

    @classmethod
    def contrast(cls, high: "Delta", low: "Delta") -> "Delta":
        """Return ``(high - low) / 2``, in which what both deltas share cancels.

        With the deltas of both poles of a trait it is a personality vector of the first pole, also
        where nothing is known of the second one; of two traits it is of no pole.

        Raises:
            BaseMismatchError: The bases differ.
        """
        half, pole = 0.5 * (high - low), high.pole
        is_of_trait = pole is not None and low.pole in (None, pole.opposite)
        label = f"{high.label} against {low.label}"
        if pole is not None and is_of_trait and pole.level == "high" and low.pole is not None:
            label = pole.trait
        return replace(
            half,
            label=label,
            pole=pole if is_of_trait else None,
            halves=(high.identity, low.identity),
        )

    @classmethod
    def load(cls, directory: str | Path) -> "Delta":
        """Open a saved delta; tensors are read when asked for.

        Raises:
            CheckpointError: The directory is not a complete saved delta.
        """
        path = Path(directory)
        source, record = open_stored(path)
        pole = Pole.parse(record.pole) if record.pole else None
        halves = record.halves
        return cls(source, record.base, record.identity, record.label, pole, path, halves)

    def save(
        self,
        directory: str | Path,
        *,
        storage: str = "float32",
        rank: int | None = None,
        force: bool = False,
    ) -> Path:
        """Write ``delta.json``, the tensors and a manifest; the directory appears whole.

        Args:
            directory: Must not exist, unless ``force``.
            storage: ``float32`` restores the fine-tuned model bit for bit; ``bfloat16`` takes half
                the room; ``lora`` keeps the factors of an adapter, and those of a sum of adapters
                side by side, as ``low-rank``; ``low-rank`` keeps the largest
                singular values of every matrix; ``reference`` keeps the paths of two checkpoints.
                What ``bfloat16`` and ``low-rank`` lose is in the record, and they are another
                delta, with another identity.
            rank: Rank of the factors, for ``low-rank`` and nothing else.
            force: Replace a delta that this tool wrote.

        Raises:
            RecipeError: There is no such storage, or this delta cannot be stored so.
            OutputExistsError: The directory exists.
            NonFiniteError: A tensor holds NaN or infinity, or does not fit the dtype.
        """
        how = f"{storage} {rank}" if rank else storage
        # Factors side by side are rounded to float32 once more.
        is_sum = storage == "lora" and not isinstance(self.source, Adapter)
        lossy = storage in ("bfloat16", "low-rank") or is_sum
        record = {
            "base": asdict(self.base),
            "identity": digest("stored", self.identity, how) if lossy else self.identity,
            "label": self.label,
            "pole": str(self.pole) if self.pole else None,
            **({"halves": self.halves} if self.halves else {}),
        }
        save_stored(self.source, Path(directory), record, storage=storage, rank=rank, force=force)
        return Path(directory)

    def verify(self) -> int:
        """Read a saved delta again and return how many tensors are as they were written.

        Raises:
            CheckpointError: Some are not, and are named; or it was not loaded from a directory.
        """
        if self.directory is None:
            raise CheckpointError(f"{self.label}: was never saved, so it has nothing to verify")
        return verify(self.directory)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors that may be non-zero, as the base has them on disk."""
        return self.source.names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self.source.shape(name)

    def __getitem__(self, name: str) -> Float[Tensor, "*shape"]:
        """Return one delta tensor, float32, on the CPU."""
        with blame(delta=self.label, tensor=name):
            if name not in self:
                raise TensorMismatchError(f"{self.label}: has no tensor {name}")
            delta = torch.empty(self.shape(name))
            flat = delta.view(-1)
            for part in pieces(flat.numel()):
                flat[part] = self.source.part(name, part)
            return delta

    def __contains__(self, name: object) -> bool:
        return name in self._named

    @cached_property
    def _named(self) -> frozenset[str]:
        return frozenset(self.source.names)

    # Another object may know how it is added to a delta, as a steering vector does.
    @overload
    def __add__(self, other: "Delta") -> "Delta": ...
    @overload
    def __add__(self, other: Any) -> Any: ...
    def __add__(self, other: Any) -> Any:
        return self._combined(other, 1.0, "+")

    @overload
    def __sub__(self, other: "Delta") -> "Delta": ...
    @overload
    def __sub__(self, other: Any) -> Any: ...
    def __sub__(self, other: Any) -> Any:
        return self._combined(other, -1.0, "-")

    def __mul__(self, factor: float) -> "Delta":
        if not math.isfinite(factor):
            raise NonFiniteError(f"{self.label}: cannot be scaled by {factor}")
        return replace(
            self,
            source=Combination.of((float(factor), self.source)),
            identity=digest("scaled", self.identity, repr(float(factor))),
            label=f"{factor:g} * ({self.label})",
            pole=self.pole if factor > 0 else None,
            directory=None,
            halves=None,
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "Delta":
        if divisor == 0:
            raise NonFiniteError(f"{self.label}: cannot be divided by 0")
        return self * (1.0 / divisor)

    def __neg__(self) -> "Delta":
        return replace(self * -1.0, label=f"-({self.label})")

    def dot(self, other: "Delta") -> float:
        """Return the inner product over all tensors, summed in float64."""
        self.require_same_base(other)
        return math.fsum(
            float(self.source.part(name, part).dot(other.source.part(name, part)))
            for name, part in self._parts()
            if name in other
        )

    def norm(self) -> float:
        """Return the Euclidean norm over all tensors."""
        parts = (self.source.part(name, part) for name, part in self._parts())
        return math.sqrt(math.fsum(float(part.dot(part)) for part in parts))

    def _parts(self) -> Iterator[tuple[str, slice]]:
        for name in self.names:
            for part in pieces(whole(self.source, name).stop):
                yield name, part

    def cosine(self, other: "Delta") -> float:
        """Return the cosine of the angle to another delta of the same base.

        Raises:
            BaseMismatchError: The bases differ.
            NonFiniteError: One of the two is zero.
        """
        lengths = self.norm() * other.norm()
        if lengths == 0.0:
            raise NonFiniteError(
                f"{self.label}, {other.label}: the cosine of a zero delta is undefined"
            )
        return self.dot(other) / lengths

    def _combined(self, other: Any, sign: float, symbol: str) -> Any:
        if not isinstance(other, Delta):
            return NotImplemented
        self.require_same_base(other)
        source = Combination.of((1.0, self.source), (sign, other.source))
        parts = [self.identity, other.identity]
        identity = digest("sum", *(sorted(parts) if sign > 0 else parts), repr(sign))
        return Delta(source, self.base, identity, f"{self.label} {symbol} {other.label}")

    def require_same_base(self, other: "Delta") -> None:
        """Raise :class:`BaseMismatchError` for a delta of another base."""
        if self.base != other.base:
            raise BaseMismatchError(
                f"{self.label} is of base {self.base} and {other.label} of base {other.base}; "
                "only deltas of one base can be compared or combined"
            )


def digest(*parts: str) -> str:
    """Return the identity of what is made of these parts."""
    return hashlib.blake2b("|".join(parts).encode(), digest_size=16).hexdigest()
