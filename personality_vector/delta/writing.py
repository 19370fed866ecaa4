"""Writing a delta in one pass: every part is stored, hashed and measured as it goes by."""

import math
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from personality_vector.checkpoint import ShardWriter, TensorPlan
from personality_vector.checkpoint.digests import new_digest
from personality_vector.checkpoint.header import NAMES
from personality_vector.delta.lora import Adapter, rows_of_product
from personality_vector.delta.low_rank import LEFT, RIGHT, is_smaller_factored, truncated
from personality_vector.delta.record import TensorRecord
from personality_vector.delta.sources import Difference, Stored, TensorSource, whole
from personality_vector.errors import NonFiniteError, blame
from personality_vector.numeric.kernels import is_finite, rounded
from personality_vector.numeric.parallel import pieces
from personality_vector.progress import progress

Keep = Callable[[slice, Float64[Tensor, " entries"]], Float64[Tensor, " entries"]]
"""Stores a part of one delta tensor, and returns what will be read back of it."""


@dataclass(slots=True)
class Learnt:
    """What is learnt while a delta is written; see :class:`DeltaRecord`.

    ``exact`` grows with the entries that base plus delta does not restore, which are few: in a
    float32 fine-tune those whose magnitude changed by a factor of two.
    """

    tensors: dict[str, TensorRecord] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)
    tuned_dtypes: dict[str, str] = field(default_factory=dict)
    exact: dict[str, Tensor] = field(default_factory=dict)


def write_entries(source: TensorSource, folder: Path, dtype: torch.dtype, learnt: Learnt) -> None:
    """Write every entry in ``dtype``; for float32, note what it takes to be exact."""
    plans = [TensorPlan(name, dtype, source.shape(name)) for name in source.names]
    _know(source, dtype, learnt)
    with _writer(folder, plans, learnt) as writer:
        for name in progress(source.names, "diff"):
            with blame(tensor=name):
                keep = _rounding(writer, name, dtype)
                if isinstance(source, Difference) and dtype == torch.float32:
                    keep = _exactly(keep, source, name, learnt)
                learnt.tensors[name] = _stream(source, name, keep)


def write_adapter(adapter: Adapter, folder: Path, learnt: Learnt) -> None:
    """Write the factors as they are."""
    entries = adapter.factors.entries
    plans = [TensorPlan(name, entries[name].dtype, entries[name].shape) for name in entries]
    with _writer(folder, plans, learnt) as writer:
        for plan in plans:
            writer.write_part(plan.name, 0, adapter.factors.part(plan.name, slice(None)))
    for name in progress(adapter.names, "diff"):
        with blame(tensor=name):
            learnt.tensors[name] = _stream(adapter, name, lambda _, delta: delta)


def write_low_rank(source: TensorSource, folder: Path, rank: int, learnt: Learnt) -> None:
    """Write two factors of every matrix that takes less room so, and every other tensor whole."""
    plans = [plan for name in source.names for plan in _low_rank_plans(source, name, rank)]
    with _writer(folder, plans, learnt) as writer:
        for name in progress(source.names, "diff"):
            with blame(tensor=name):
                is_factored = is_smaller_factored(source.shape(name), rank)
                keep = (
                    _factoring(writer, source, name, rank)
                    if is_factored
                    else _rounding(writer, name, torch.float32)
                )
                learnt.tensors[name] = _stream(source, name, keep)


def _low_rank_plans(source: TensorSource, name: str, rank: int) -> list[TensorPlan]:
    shape = source.shape(name)
    if not is_smaller_factored(shape, rank):
        return [TensorPlan(name, torch.float32, shape)]
    rows, columns = shape
    factors = {name + LEFT: (rows, rank), name + RIGHT: (rank, columns)}
    return [TensorPlan(factor, torch.float32, size) for factor, size in factors.items()]


def measure(source: TensorSource, learnt: Learnt) -> None:
    """Write nothing; note the statistics and a hash of every float64 delta tensor."""
    for name in progress(source.names, "diff"):
        digest = new_digest()

        def keep(_: slice, delta: Tensor, digest: Any = digest) -> Tensor:
            digest.update(_raw(delta))
            return delta

        with blame(tensor=name):
            learnt.tensors[name] = _stream(source, name, keep)
        learnt.hashes[name] = digest.hexdigest()


def hash_of(parts: Iterable[Tensor]) -> str:
    """Return the hash of the bytes of flat tensors, one after the other."""
    digest = new_digest()
    for part in parts:
        digest.update(_raw(part))
    return str(digest.hexdigest())


@dataclass(slots=True)
class _Sums:
    """Sums over the entries of one delta tensor that have been stored."""

    square: float = 0.0
    stored: float = 0.0
    lost: float = 0.0
    zeros: int = 0

    def add(self, delta: Tensor, stored: Tensor) -> None:
        lost = stored - delta
        self.square += float(delta.dot(delta))
        self.stored += float(stored.dot(stored))
        self.lost += float(lost.dot(lost))
        self.zeros += delta.numel() - int(delta.count_nonzero())

    def of(self, shape: tuple[int, ...]) -> TensorRecord:
        norm, count = math.sqrt(self.square), math.prod(shape)
        return TensorRecord(
            shape=shape,
            norm=norm,
            stored_norm=math.sqrt(self.stored),
            loss=math.sqrt(self.lost) / (norm or 1.0),
            zeros=self.zeros / count if count else 1.0,
        )


def _stream(source: TensorSource, name: str, keep: Keep) -> TensorRecord:
    """Store one tensor part by part, and return what was learnt of it."""
    sums = _Sums()
    for part in pieces(whole(source, name).stop):
        delta = source.part(name, part)
        sums.add(delta, keep(part, delta))
    return sums.of(source.shape(name))


@dataclass(slots=True)
class _Writer:
    """Writes parts of tensors in order, and hashes them."""

    shards: ShardWriter
    digests: dict[str, Any]

    def write_part(self, name: str, start: int, entries: Tensor) -> None:
        self.shards.write_part(name, start, entries)
        self.digests[name].update(_raw(entries))


@contextmanager
def _writer(folder: Path, plans: list[TensorPlan], learnt: Learnt) -> Generator[_Writer]:
    digests = {plan.name: new_digest() for plan in plans}
    with ShardWriter(folder, plans, 2**63, stem="delta") as shards:
        yield _Writer(shards, digests)
    learnt.hashes |= {name: digest.hexdigest() for name, digest in digests.items()}


def _rounding(writer: _Writer, name: str, dtype: torch.dtype) -> Keep:
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


def _factoring(writer: _Writer, source: TensorSource, name: str, rank: int) -> Keep:
    """Store the two factors at once, and read entries back from their product."""
    left, right = truncated(source, name, rank)
    writer.write_part(name + LEFT, 0, left.reshape(-1))
    writer.write_part(name + RIGHT, 0, right.reshape(-1))
    return lambda part, _: rows_of_product(left, right, part)


def _exactly(keep: Keep, source: Difference, name: str, learnt: Learnt) -> Keep:
    """Store the entries, and note which of them do not restore the fine-tuned value."""

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


def _know(source: TensorSource, dtype: torch.dtype, learnt: Learnt) -> None:
    """Note the dtypes of the fine-tuned tensors, and what a delta that was loaded knows of them."""
    if dtype != torch.float32:
        return
    if isinstance(source, Difference):
        entries = source.tuned.entries
        learnt.tuned_dtypes = {name: NAMES[entries[name].dtype] for name in source.names}
    elif isinstance(source, Stored):
        learnt.tuned_dtypes = {name: NAMES[kind] for name, kind in source.tuned_dtypes.items()}
        if source.exact is not None:
            learnt.exact = {name: source.exact[name] for name in source.exact.names}


def _append(table: dict[str, Tensor], name: str, entries: Tensor) -> None:
    table[name] = torch.cat([table[name], entries]) if name in table else entries


def _bits(entries: Tensor) -> Tensor:
    return entries.view({2: torch.int16, 4: torch.int32, 8: torch.int64}[entries.dtype.itemsize])


def _raw(entries: Tensor) -> memoryview:
    return entries.contiguous().view(torch.uint8).numpy().data
