"""Writing a delta in one pass: every part is stored, hashed and measured as it is read."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash
from jaxtyping import Float64
from torch import Tensor

from personality_vector.checkpoint import NAMES, ShardWriter, TensorPlan
from personality_vector.delta.lora import LEFT, RIGHT, Adapter, is_smaller_factored, rows_of_product
from personality_vector.delta.low_rank import truncated
from personality_vector.delta.record import TensorRecord
from personality_vector.delta.sources import Difference, Stored, TensorSource, whole
from personality_vector.errors import NonFiniteError, blame
from personality_vector.numeric.kernels import is_finite, rounded
from personality_vector.numeric.parallel import pieces
from personality_vector.progress import progress

Keep = Callable[[str, slice, Float64[Tensor, " entries"]], Float64[Tensor, " entries"]]
"""Stores a part of the delta tensor of a name, and returns what will be read back of it."""


@dataclass(slots=True)
class Findings:
    """Collects what is found out while a delta is written; see :class:`DeltaRecord`.

    ``digests`` are those that the hashes come from. ``exact`` grows with the entries that base plus
    delta does not restore, which are few: in a float32 fine-tune those whose magnitude changed by a
    factor of two.
    """

    tensors: dict[str, TensorRecord] = field(default_factory=dict)
    digests: dict[str, Any] = field(default_factory=dict)
    tuned_dtypes: Mapping[str, str] = field(default_factory=dict)
    exact: dict[str, Tensor] = field(default_factory=dict)


def write_entries(source: TensorSource, folder: Path, dtype: torch.dtype, found: Findings) -> None:
    """Write every entry in ``dtype``; for float32, note what it takes to be exact."""
    plans = [TensorPlan(name, dtype, source.shape(name)) for name in source.names]
    with _Writer(folder, plans, found) as writer:
        keep: Keep = partial(_rounded, writer, dtype)
        if dtype == torch.float32 and isinstance(source, Stored):
            found.tuned_dtypes = source.tuned_dtypes
            if source.exact is not None:
                found.exact = {name: source.exact[name] for name in source.exact.names}
        if dtype == torch.float32 and isinstance(source, Difference):
            entries = source.tuned.entries
            found.tuned_dtypes = {name: NAMES[entries[name].dtype] for name in source.names}
            keep = partial(_exactly, keep, source, found)
        _store(source, found, keep)


def write_adapter(adapter: Adapter, folder: Path, found: Findings) -> None:
    """Write the factors as they are."""
    plans = list(adapter.tensors.entries.values())
    with _Writer(folder, plans, found) as writer:
        for plan in plans:
            writer.write_part(plan.name, 0, adapter.tensors.part(plan.name, slice(None)))
    _store(adapter, found, lambda *part: part[-1])


def write_low_rank(
    source: TensorSource,
    folder: Path,
    rank: int,
    found: Findings,
    factors_of: Callable[[str], tuple[Tensor, Tensor]] | None = None,
) -> None:
    """Write two factors of every matrix that is larger than they are; other tensors whole.

    Without ``factors_of``, they are those of the nearest matrix of this rank.
    """
    factors_of = factors_of or partial(_nearest, source, rank)
    plans = []
    for name in source.names:
        shapes = {name: source.shape(name)}
        if is_smaller_factored(shapes[name], rank):
            rows, columns = shapes[name]
            shapes = {name + LEFT: (rows, rank), name + RIGHT: (rank, columns)}
        plans += [TensorPlan(factor, torch.float32, shape) for factor, shape in shapes.items()]
    writer = _Writer(folder, plans, found)
    with writer:
        _store(source, found, partial(_factored, writer, factors_of, {}))


def measure(source: Difference, found: Findings) -> None:
    """Write nothing; note the statistics and a hash of every float64 delta tensor."""
    found.digests = {name: xxhash.xxh3_128() for name in source.names}

    def keep(name: str, _: slice, delta: Tensor) -> Tensor:
        found.digests[name].update(_raw(delta))
        return delta

    _store(source, found, keep)


def _store(source: TensorSource, found: Findings, keep: Keep) -> None:
    """Store every tensor, and note what is found out about it."""
    for name in progress(source.names, "diff"):
        with blame(tensor=name):
            found.tensors[name] = _measured(source, name, keep)


def _measured(source: TensorSource, name: str, keep: Keep) -> TensorRecord:
    """Store one tensor part by part, and return its statistics."""
    square = stored_square = lost_square = 0.0
    zeros, count = 0, whole(source, name).stop
    for part in pieces(count):
        delta = source.part(name, part)
        stored = keep(name, part, delta)
        lost = stored - delta
        square += float(delta.dot(delta))
        stored_square += float(stored.dot(stored))
        lost_square += float(lost.dot(lost))
        zeros += delta.numel() - int(delta.count_nonzero())
    return TensorRecord(
        shape=source.shape(name),
        norm=math.sqrt(square),
        stored_norm=math.sqrt(stored_square),
        loss=math.sqrt(lost_square) / (math.sqrt(square) or 1.0),
        zeros=zeros / count if count else 1.0,
    )


class _Writer(ShardWriter):
    """Writes parts of tensors in order, and hashes them."""

    def __init__(self, folder: Path, plans: Sequence[TensorPlan], found: Findings) -> None:
        super().__init__(folder, plans, 2**63, stem="delta")
        self.planned = frozenset(plan.name for plan in plans)
        self._digests = found.digests = {plan.name: xxhash.xxh3_128() for plan in plans}

    def write_part(self, name: str, start: int, entries: Tensor) -> None:
        super().write_part(name, start, entries)
        self._digests[name].update(_raw(entries))


def _rounded(
    writer: ShardWriter, dtype: torch.dtype, name: str, part: slice, delta: Tensor
) -> Tensor:
    """Store the entries, rounded once."""
    stored = rounded(delta, dtype)
    if not is_finite(stored):
        raise NonFiniteError(
            f"{name}: the delta is as large as {float(delta.abs().max()):g}, more than "
            f"{dtype} holds".replace("torch.", "")
        )
    writer.write_part(name, part.start, stored)
    return stored.double()


def _exactly(
    keep: Keep, source: Difference, found: Findings, name: str, part: slice, delta: Tensor
) -> Tensor:
    """Store the entries, and note which of them do not restore the fine-tuned value."""
    stored = keep(name, part, delta)
    tuned = source.tuned.part(name, part)
    restored = Stored.sum_of(source.base.part(name, part), stored.float(), tuned.dtype)
    # Compared as bits, so that -0.0 and 0.0 differ.
    wrong = (_bits(restored) != _bits(tuned)).nonzero()[:, 0]
    if wrong.numel():
        for end, entries in ((".index", wrong + part.start), (".value", tuned[wrong])):
            before = [found.exact[name + end]] if name + end in found.exact else []
            found.exact[name + end] = torch.cat([*before, entries])
    return stored


def _nearest(source: TensorSource, rank: int, name: str) -> tuple[Tensor, Tensor]:
    return truncated(source, name, rank)


def _factored(
    writer: _Writer,
    factors_of: Callable[[str], tuple[Tensor, Tensor]],
    factors: dict[str, tuple[Tensor, Tensor]],
    name: str,
    part: slice,
    delta: Tensor,
) -> Tensor:
    """Store both factors of a matrix with its first part; read every part from their product."""
    if name in writer.planned:
        return _rounded(writer, torch.float32, name, part, delta)
    if name not in factors:
        factors.clear()
        factors[name] = left, right = factors_of(name)
        writer.write_part(name + LEFT, 0, left.reshape(-1))
        writer.write_part(name + RIGHT, 0, right.reshape(-1))
    return rows_of_product(*factors[name], part)


def hash_of(parts: Iterable[Tensor]) -> str:
    """Return the hash of the bytes of flat tensors, one after the other."""
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(_raw(part))
    return str(digest.hexdigest())


def _bits(entries: Tensor) -> Tensor:
    return entries.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[entries.dtype.itemsize])


def _raw(entries: Tensor) -> memoryview:
    return entries.contiguous().view(torch.uint8).numpy().data
