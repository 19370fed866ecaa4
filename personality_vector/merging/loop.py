"""The compiled form of the methods that have one: everything that a merge does to a run of entries.

The functions of :mod:`personality_vector.merging.methods` say what a method is; for those in
:data:`LOOPS` this loop computes the same bits on the CPU without a single intermediate tensor in
memory, which is several times faster. What it fuses: the difference, the sparsification (by
magnitude or by chance), the consensus, the sum, the rounding to bfloat16 and the statistics.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from jaxtyping import BFloat16, Float, Float64
from numba import types
from numba.extending import overload
from torch import Tensor

from personality_vector.checkpoint import Checkpoint
from personality_vector.compiled import compiled, compiled_sum
from personality_vector.delta.sources import require_finite
from personality_vector.errors import blame
from personality_vector.kernels import entry_of, nearest_bfloat16, wide
from personality_vector.merging.methods import Slice
from personality_vector.merging.rounding import require_fit
from personality_vector.merging.terms import TermSlice
from personality_vector.rng import mixed

_BLOCK = 2048
"""Entries that go through all steps together: of six terms 100 KB, which the inner caches hold."""

_CONSENSUS = {"all": 0, "mean": 1, "sum": 2}


@dataclass(frozen=True, slots=True)
class Loop:
    """What the loop needs to know of a method.

    Attributes:
        low: The float32 magnitude below which an entry of a slice is left out.
        high: The magnitude from which on it is left out.
        drop_rate: Probability that an entry is left out; the others are divided by its complement.
        consensus: The sum of ``all`` terms; or the ``mean`` or ``sum`` of those that have the
            elected sign.
        by_count: Whether the sign is elected by the number of terms, not by their mass.
        lambda_: Factor of the result.
    """

    low: Callable[[Slice], float] = lambda _: 0.0
    high: Callable[[Slice], float] = lambda _: inf
    drop_rate: float = 0.0
    consensus: Literal["all", "mean", "sum"] = "all"
    by_count: bool = False
    lambda_: float = 1.0


class Squares(NamedTuple):
    """Inner products over some entries: base with itself, change with itself and as written."""

    base: float = 0.0
    change: float = 0.0
    along: float = 0.0


def _breadcrumbs(o: Mapping[str, Any]) -> Loop:
    def low(s: Slice) -> float:
        return s.threshold(1.0 - o["beta"], "per_tensor")

    def high(s: Slice) -> float:
        return max(low(s), s.threshold(o["gamma"], "per_tensor")) if o["gamma"] else inf

    return Loop(low=low, high=high, lambda_=o["lambda"])


def _agreeing(o: Mapping[str, Any], **sparsify: Any) -> Loop:
    by_count = o["election"] == "count"
    return Loop(consensus=o["consensus"], by_count=by_count, lambda_=o["lambda"], **sparsify)


LOOPS: Mapping[str, Callable[[Mapping[str, Any]], Loop]] = {
    "task_arithmetic": lambda o: Loop(lambda_=o["lambda"]),
    "ties": lambda o: _agreeing(o, low=lambda s: s.threshold(o["density"], o["trim"])),
    "dare": lambda o: Loop(drop_rate=o["drop_rate"], lambda_=o["lambda"]),
    "dare_ties": lambda o: _agreeing(o, drop_rate=o["drop_rate"]),
    "breadcrumbs": _breadcrumbs,
}
"""From the options of a method to its loop."""


def merged(
    loop: Loop, slices: Sequence[TermSlice], base: BFloat16[Tensor, " entries"]
) -> tuple[BFloat16[Tensor, " entries"], Squares]:
    """Return ``base + change`` rounded once to bfloat16, and the inner products.

    Raises:
        NonFiniteError: A term holds NaN or infinity, or a sum does not fit bfloat16.
    """
    given = _Given.of(loop, slices, base)
    written = torch.empty_like(base)
    *squares, odd = _merge(*given.arrays, given.numbers, written.view(torch.uint16).numpy())
    given.require_finite(odd)
    require_fit(written, lambda: base.double() + changed(loop, slices, base))
    return written, Squares(*squares)


def changed(
    loop: Loop, slices: Sequence[TermSlice], base: Float[Tensor, " entries"]
) -> Float64[Tensor, " entries"]:
    """Return the change alone, in float64.

    Raises:
        NonFiniteError: A term holds NaN or infinity.
    """
    given = _Given.of(loop, slices, base)
    change = torch.empty(base.shape, dtype=torch.float64)
    odd = _change(*given.arrays, given.numbers, change.numpy())
    given.require_finite(odd)
    return change


@dataclass(frozen=True, slots=True)
class _Given:
    """The arguments of the compiled loops."""

    slices: Sequence[TermSlice]
    arrays: tuple[Any, Any]
    numbers: tuple[Any, ...]

    @classmethod
    def of(cls, loop: Loop, slices: Sequence[TermSlice], base: Tensor) -> "_Given":
        low = np.array([loop.low(s) for s in slices], np.float32)
        high = np.array([loop.high(s) for s in slices], np.float32)
        rate = np.uint64(ceil(float(np.float32(loop.drop_rate)) * 2**24))
        numbers = (
            np.array([s.alpha for s in slices]),
            low,
            high,
            np.array([s.acting.key for s in slices], np.uint64),
            np.int64(slices[0].start),
            rate,
            1.0 - loop.drop_rate,
            np.int64(_CONSENSUS[loop.consensus]),
            loop.by_count,
            loop.lambda_,
        )
        return cls(slices, _arrays(slices, base), numbers)

    def require_finite(self, odd: int) -> None:
        if odd >= 0:
            culprit = self.slices[odd]
            with blame(delta=culprit.acting.term.delta.label):
                tuned = cast(Checkpoint, culprit.acting.tuned)  # noqa: TC006
                require_finite(tuned, culprit.name, culprit.part)


def _arrays(slices: Sequence[TermSlice], base: Tensor) -> tuple[Any, Any]:
    """Return base and terms: bits of bfloat16 weights if all are, else float64 base and deltas."""
    tuned = [s.acting.tuned for s in slices if s.acting.tuned]
    if base.dtype != torch.bfloat16 or len(tuned) < len(slices):
        return base.double().numpy(), torch.stack([s.delta for s in slices]).numpy()
    rows = torch.empty((len(slices), base.numel()), dtype=torch.bfloat16)
    for row, s, checkpoint in zip(rows, slices, tuned, strict=True):
        checkpoint.part(s.name, s.part, row)
    return base.view(torch.uint16).numpy(), rows.view(torch.uint16).numpy()


def _weight(entry: Any) -> Any:
    """Return a weight in float64: the entry itself, or what its bits stand for."""


def _is_odd(entry: Any) -> Any:
    """Return whether bits are those of NaN or infinity; a float64 has been checked before."""


@overload(_weight, strict=False)  # type: ignore[untyped-decorator]
def _weight_of(entry: Any) -> Any:
    return (lambda entry: wide(entry)) if _are_bits(entry) else lambda entry: entry


@overload(_is_odd, strict=False)  # type: ignore[untyped-decorator]
def _is_odd_of(entry: Any) -> Any:
    if _are_bits(entry):
        return lambda entry: (entry & np.uint16(0x7F80)) == np.uint16(0x7F80)
    return lambda entry: False  # noqa: ARG005


def _are_bits(kind: Any) -> bool:
    return isinstance(kind, types.Integer)


@compiled
def _merge(base: Any, terms: Any, numbers: Any, written: Any) -> Any:
    scratch, change = np.empty((len(terms) + 3, _BLOCK)), np.empty(_BLOCK)
    squares, odd = np.zeros(3), -1
    for first in range(0, base.size, _BLOCK):
        here = slice(first, min(first + _BLOCK, base.size))
        size = here.stop - first
        odd = max(odd, _block(base, terms, here, numbers, scratch, change[:size]))
        _round(scratch[-1], change, written[here])
        _measure(scratch[-1], change, written[here], squares)
    return squares[0], squares[1], squares[2], odd


@compiled
def _change(base: Any, terms: Any, numbers: Any, out: Any) -> Any:
    scratch, odd = np.empty((len(terms) + 3, _BLOCK)), -1
    for first in range(0, base.size, _BLOCK):
        here = slice(first, min(first + _BLOCK, base.size))
        odd = max(odd, _block(base, terms, here, numbers, scratch, out[here]))
    return odd


@compiled
def _round(weights: Any, change: Any, written: Any) -> None:
    for j in range(written.size):
        written[j] = nearest_bfloat16(weights[j] + change[j])


@compiled
def _block(base: Any, terms: Any, here: Any, numbers: Any, scratch: Any, change: Any) -> Any:
    """Write the base in float64 and the change of some entries; return a term that is odd."""
    alphas, low, high, keys, start, rate, kept, consensus, by_count, lambda_ = numbers
    size, count, odd = here.stop - here.start, len(terms), -1
    # Rows of whole arrays, since only those are known to be contiguous, which makes loops fast.
    weights = scratch[-1, :size]
    for j in range(size):
        weights[j] = _weight(base[here.start + j])
    for i in range(count):
        out = scratch[i, :size]
        if _widen(terms[i, here], weights, out):
            odd = i
        _trim(out, low[i], high[i])
        _drop(out, keys[i], start + here.start, rate, kept)
        _scale(out, alphas[i])
    if consensus == 0:
        _add(scratch, count, change)
    else:
        _agree(scratch, count, consensus == 1, by_count, change)
    _scale(change, lambda_)
    return odd


@compiled
def _widen(term: Any, weights: Any, out: Any) -> Any:
    odd = False
    for j in range(term.size):
        out[j] = entry_of(term[j], weights[j])
        odd |= _is_odd(term[j])
    return odd


@compiled
def _scale(out: Any, factor: Any) -> None:
    if factor != 1.0:
        for j in range(out.size):
            out[j] *= factor


@compiled
def _trim(out: Any, low: Any, high: Any) -> None:
    if low <= 0.0 and high == np.inf:
        return
    for j in range(out.size):
        magnitude = np.float32(abs(out[j]))
        out[j] = out[j] if (magnitude >= low) & (magnitude < high) else 0.0


@compiled
def _drop(out: Any, key: Any, start: Any, rate: Any, kept: Any) -> None:
    if rate == 0:
        return
    for j in range(out.size):
        out[j] = out[j] / kept if mixed(key, start + j) >= rate else 0.0


@compiled
def _add(weighted: Any, count: Any, total: Any) -> None:
    total[:] = 0.0
    for i in range(count):
        for j in range(total.size):
            total[j] += weighted[i, j]


@compiled
def _agree(weighted: Any, count: Any, is_mean: Any, by_count: Any, total: Any) -> None:
    elected, agreed = weighted[-2], weighted[-3]
    elected[:], agreed[:], total[:] = 0.0, 0.0, 0.0
    for i in range(count):
        for j in range(total.size):
            elected[j] += np.sign(weighted[i, j]) if by_count else weighted[i, j]
    for i in range(count):
        for j in range(total.size):
            agrees = weighted[i, j] * elected[j] > 0.0
            total[j] += weighted[i, j] if agrees else 0.0
            agreed[j] += 1.0 if agrees else 0.0
    if is_mean:
        for j in range(total.size):
            total[j] /= max(agreed[j], 1.0)


@compiled_sum
def _measure(weights: Any, change: Any, written: Any, squares: Any) -> None:
    of_base = of_change = along = 0.0
    for j in range(written.size):
        of_base += weights[j] * weights[j]
        of_change += change[j] * change[j]
        along += (wide(written[j]) - weights[j]) * change[j]
    squares[0] += of_base
    squares[1] += of_change
    squares[2] += along
