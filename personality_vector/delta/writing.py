"""Writing a delta in one pass: every part is stored, hashed and measured as it goes by."""

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

from personality_vector.checkpoint import ShardWriter, TensorPlan
from personality_vector.checkpoint.header import NAMES
from personality_vector.delta.lora import (
    LEFT,
    RIGHT,
    Adapter,
    Scaling,
    is_smaller_factored,
    rows_of_product,
)
from personality_vector.delta.low_rank import truncated
from personality_vector.delta.record import ReferenceRecord, TensorRecord
from personality_vector.delta.sources import Difference, Stored, TensorSource, whole
from personality_vector.errors import NonFiniteError, blame
from personality_vector.numeric.kernels import is_finite, rounded
from personality_vector.numeric.parallel import pieces
from personality_vector.progress import progress

Keep = Callable[[slice, Float64[Tensor, " entries"]], Float64[Tensor, " entries"]]
"""Stores a part of one delta tensor, and returns what will be read back of it."""


KeepOf = Callable[[str], Keep]
"""Returns what stores the tensor of this name."""


@dataclass(slots=True)
class Learnt:
    """What is learnt while a delta is written; see :class:`DeltaRecord`.

    ``digests`` are those that the hashes come from. ``exact`` grows with the entries that base plus
    delta does not restore, which are few: in a float32 fine-tune those whose magnitude changed by a
    factor of two.
    """

    tensors: dict[str, TensorRecord] = field(default_factory=dict)
    digests: dict[str, Any] = field(default_factory=dict)
    tuned_dtypes: Mapping[str, str] = field(default_factory=dict)
    exact: dict[str, Tensor] = field(default_factory=dict)
    adapter: Scaling | None = None
    reference: ReferenceRecord | None = None


def write_entries(source: TensorSource, folder: Path, dtype: torch.dtype, learnt: Learnt) -> None:
    """Write every entry in ``dtype``; for float32, note what it takes to be exact."""
    plans = [TensorPlan(name, dtype, source.shape(name)) for name in source.names]
    with _Writer(folder, plans, learnt) as writer:
        keep_of: KeepOf = partial(_rounding, writer, dtype)
        if dtype == torch.float32 and isinstance(source, Stored):
            learnt.tuned_dtypes = source.tuned_dtypes
            if source.exact is not None:
                learnt.exact = {name: source.exact[name] for name in source.exact.names}
        if dtype == torch.float32 and isinstance(source, Difference):
            entries = source.tuned.entries
            learnt.tuned_dtypes = {name: NAMES[entries[name].dtype] for name in source.names}
            keep_of = partial(_exactly, keep_of, source, learnt)
        _store(source, learnt, keep_of)


def write_adapter(adapter: Adapter, folder: Path, learnt: Learnt) -> None:
    """Write the factors as they are."""
    learnt.adapter = adapter.scaling
    plans = list(adapter.factors.entries.values())
    with _Writer(folder, plans, learnt) as writer:
        for plan in plans:
            writer.write_part(plan.name, 0, adapter.factors.part(plan.name, slice(None)))
    _store(adapter, learnt, lambda _: lambda _, delta: delta)


def write_low_rank(source: TensorSource, folder: Path, rank: int, learnt: Learnt) -> None:
    """Write two factors of every matrix that takes less room so, and every other tensor whole."""
    plans = [plan for name in source.names for plan in _low_rank_plans(source, name, rank)]
    with _Writer(folder, plans, learnt) as writer:
        _store(source, learnt, partial(_factoring, writer, source, rank))


def measure(source: Difference, learnt: Learnt) -> None:
    """Write nothing; note the statistics and a hash of every float64 delta tensor."""
    base, tuned = source.base.path, source.tuned
    learnt.reference = ReferenceRecord(
        base=str(base), tuned=str(tuned.path), tuned_digest=tuned.fingerprint.digest
    )
    learnt.digests = {name: xxhash.xxh3_128() for name in source.names}
    _store(source, learnt, partial(_hashing, learnt))


def _low_rank_plans(source: TensorSource, name: str, rank: int) -> list[TensorPlan]:
    shape = source.shape(name)
    if not is_smaller_factored(shape, rank):
        return [TensorPlan(name, torch.float32, shape)]
    rows, columns = shape
    factors = {name + LEFT: (rows, rank), name + RIGHT: (rank, columns)}
    return [TensorPlan(factor, torch.float32, size) for factor, size in factors.items()]


def _store(source: TensorSource, learnt: Learnt, keep_of: KeepOf) -> None:
    """Store every tensor, and note what is learnt of it."""
    for name in progress(source.names, "diff"):
        with blame(tensor=name):
            learnt.tensors[name] = _measured(source, name, keep_of(name))


def _measured(source: TensorSource, name: str, keep: Keep) -> TensorRecord:
    """Store one tensor part by part, and return what was learnt of it."""
    square = stored_square = lost_square = 0.0
    zeros, count = 0, whole(source, name).stop
    for part in pieces(count):
        delta = source.part(name, part)
        stored = keep(part, delta)
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

    def __init__(self, folder: Path, plans: Sequence[TensorPlan], learnt: Learnt) -> None:
        super().__init__(folder, plans, 2**63, stem="delta")
        self._digests = learnt.digests = {plan.name: xxhash.xxh3_128() for plan in plans}

    def write_part(self, name: str, start: int, entries: Tensor) -> None:
        super().write_part(name, start, entries)
        self._digests[name].update(_raw(entries))


def _rounding(writer: ShardWriter, dtype: torch.dtype, name: str) -> Keep:
    """Store the entries, rounded once."""

    def keep(part: slice, delta: Tensor) -> Tensor:
        stored = rounded(delta, dtype)
        if not is_finite(stored):
            raise NonFiniteError(
                f"{name}: the delta is as large as {float(delta.abs().max()):g}, more than "
                f"{dtype} holds".replace("torch.", "")
            )
        writer.write_part(name, part.start, stored)
        return stored.double()

    return keep


def _exactly(keep_of: KeepOf, source: Difference, learnt: Learnt, name: str) -> Keep:
    """Store the entries, and note which of them do not restore the fine-tuned value."""
    keep = keep_of(name)

    def keep_exactly(part: slice, delta: Tensor) -> Tensor:
        stored = keep(part, delta)
        tuned = source.tuned.part(name, part)
        restored = Stored.sum_of(source.base.part(name, part), stored.float(), tuned.dtype)
        # Compared as bits, so that -0.0 and 0.0 differ.
        wrong = (_bits(restored) != _bits(tuned)).nonzero()[:, 0]
        if wrong.numel():
            _append(learnt.exact, f"{name}.index", wrong + part.start)
            _append(learnt.exact, f"{name}.value", tuned[wrong])
        return stored

    return keep_exactly


def _factoring(writer: ShardWriter, source: TensorSource, rank: int, name: str) -> Keep:
    """Store the two factors of a matrix at once, and read entries back from their product."""
    if not is_smaller_factored(source.shape(name), rank):
        return _rounding(writer, torch.float32, name)
    left, right = truncated(source, name, rank)
    writer.write_part(name + LEFT, 0, left.reshape(-1))
    writer.write_part(name + RIGHT, 0, right.reshape(-1))
    return lambda part, _: rows_of_product(left, right, part)


def _hashing(learnt: Learnt, name: str) -> Keep:
    """Store nothing but the hash of the entries."""

    def keep(_: slice, delta: Tensor) -> Tensor:
        learnt.digests[name].update(_raw(delta))
        return delta

    return keep


def hash_of(parts: Iterable[Tensor]) -> str:
    """Return the hash of the bytes of flat tensors, one after the other."""
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(_raw(part))
    return str(digest.hexdigest())


def _append(table: dict[str, Tensor], name: str, entries: Tensor) -> None:
    table[name] = torch.cat([table[name], entries]) if name in table else entries


def _bits(entries: Tensor) -> Tensor:
    return entries.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[entries.dtype.itemsize])


def _raw(entries: Tensor) -> memoryview:
    return entries.contiguous().view(torch.uint8).numpy().data
