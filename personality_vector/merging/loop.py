"""The compiled form of the methods that have one: everything that a merge does to a run of entries.

The functions of :mod:`personality_vector.merging.methods` say what a method is; for those in
:data:`LOOPS` this loop computes the same bits on the CPU without a single intermediate tensor in
memory, which is several times faster. What it fuses: the difference, the sparsification (by
magnitude or by chance), the consensus, the sum, the rounding to bfloat16 and the statistics.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, inf
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import BFloat16, Float, Float64
from torch import Tensor

from personality_vector.delta.sources import require_finite
from personality_vector.errors import blame
from personality_vector.merging.methods import Slice, complement
from personality_vector.merging.rounding import require_fit
from personality_vector.merging.terms import TermSlice
from personality_vector.numeric.compiled import change_all, merge_all

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
        return s.threshold(complement(o["beta"]), "per_tensor")

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
    *squares, odd = merge_all(*given.arrays, given.numbers, written.view(torch.uint16).numpy())
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
    odd = change_all(*given.arrays, given.numbers, change.numpy())
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
        if odd < 0:
            return
        culprit = self.slices[odd]
        with blame(delta=culprit.acting.term.delta.label):
            for end in culprit.acting.ends or ():
                require_finite(end, culprit.name, culprit.part)


def _arrays(slices: Sequence[TermSlice], base: Tensor) -> tuple[Any, Any]:
    """Return base and terms: bits of bfloat16 weights if all are, else float64 base and deltas."""
    ends = [s.acting.ends for s in slices if s.acting.ends]
    if base.dtype != torch.bfloat16 or len(ends) < len(slices):
        return base.double().numpy(), torch.stack([s.delta for s in slices]).numpy()
    rows = torch.empty((len(slices), base.numel()), dtype=torch.bfloat16)
    for row, s, (tuned, _) in zip(rows, slices, ends, strict=True):
        tuned.part(s.name, s.part, row)
    return base.view(torch.uint16).numpy(), rows.view(torch.uint16).numpy()
