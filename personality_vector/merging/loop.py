"""What a merge does to a run of entries: add the change to the base, round once, and measure.

:class:`Kept` and :class:`Vote` say what a formula keeps of each term and how its terms vote. From
them this loop computes the same bits as the formula, on the CPU and without a single intermediate
tensor in memory, which is several times faster. It fuses the difference, the sparsification (by
magnitude or by chance), the consensus, the sum, the rounding to bfloat16 and the statistics.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import BFloat16, Float, Float64
from torch import Tensor

from personality_vector.delta.sources import require_finite
from personality_vector.errors import NonFiniteError, RecipeError, blame
from personality_vector.merging.formula import Combine, Formula, Vote
from personality_vector.merging.terms import Slice
from personality_vector.numeric.compiled import BLOCK, merge_all
from personality_vector.numeric.kernels import difference, is_finite, projection, rounded, summed
from personality_vector.numeric.random import uniform

Rounding = Literal["nearest", "stochastic"]

_CONSENSUS = {"all": 0, "mean": 1, "sum": 2}


@dataclass(frozen=True, slots=True)
class Cast:
    """The one rounding of a tensor.

    Attributes:
        dtype: Any floating dtype.
        rounding: ``nearest`` (ties to even) or ``stochastic``: up or down with the probability
            that makes the expectation exact. Only bfloat16 has the latter.
        key: Key of the random stream of the tensor.
    """

    dtype: torch.dtype
    rounding: Rounding = "nearest"
    key: int = 0

    def rounded(
        self, values: Float64[Tensor, " entries"], start: int = 0
    ) -> Float[Tensor, " entries"]:
        """Return a run of entries of the tensor, of which ``start`` is the first, rounded.

        Raises:
            NonFiniteError: A finite value does not fit the dtype.
            RecipeError: Stochastic rounding to another dtype than bfloat16.
        """
        if self.rounding == "nearest":
            near = rounded(values, self.dtype)
        else:
            require_stochastic(self.dtype)
            # bfloat16 is the upper half of float32: adding 16 random bits below carries with the
            # right probability, also for negative numbers, whose magnitude is what the bits hold.
            noise = uniform(self.key, start, values.numel(), values.device) * (1 << 16)
            bits = values.float().view(torch.int32) + noise.int()
            near = (bits & ~0xFFFF).view(torch.float32).bfloat16()
        require_fit(near, lambda: values)
        return near


class Squares(NamedTuple):
    """Inner products over some entries: base with itself, change with itself and as written."""

    base: float = 0.0
    change: float = 0.0
    along: float = 0.0

    @classmethod
    def total(cls, parts: Sequence["Squares"]) -> "Squares":
        """Return the sums over the parts of a tensor, rounded once."""
        return cls(*map(math.fsum, zip(*parts, strict=True)))

    def plus(self, other: "Squares") -> "Squares":
        """Return the sums over both."""
        return Squares(*(one + more for one, more in zip(self, other, strict=True)))

    @property
    def share(self) -> float | None:
        """Projection of the written change on the ideal change; ``None`` if nothing changes.

        It is 1 where nothing was lost. bfloat16 keeps 8 bits: an edit smaller than half a step of
        the weight is rounded away, so that a nominal alpha of 0.1 can act as 0.03.
        """
        return self.along / self.change if self.change else None


def require_fit(
    written: Float[Tensor, " entries"], values: Callable[[], Float64[Tensor, " entries"]]
) -> None:
    """Check that numbers still are numbers after rounding.

    Raises:
        NonFiniteError: One of ``values`` does not fit the dtype of ``written``.
    """
    if is_finite(written):
        return
    largest = float(values().abs().max())
    fits = largest <= torch.finfo(torch.float32).max and written.dtype != torch.float32
    remedy = "write output.dtype: float32" if fits else "lower alpha"
    raise NonFiniteError(f"{largest:.3g} does not fit {written.dtype}; {remedy}")


def require_stochastic(dtype: torch.dtype) -> None:
    """Raise :class:`RecipeError` for a dtype that has no stochastic rounding."""
    if dtype != torch.bfloat16:
        raise RecipeError(f"rounding: stochastic is for bfloat16 outputs, this one is {dtype}")


def changed(combine: Combine, slices: Sequence[Slice]) -> Float64[Tensor, " entries"]:
    """Return the change that the slices of all terms make, compiled where that is possible.

    Raises:
        NonFiniteError: A term holds NaN or infinity.
    """
    numbers = _numbers(combine, slices)
    if numbers is None:
        return combine(slices)
    arrays = _arrays(slices)
    change = torch.empty(arrays[1].shape[1], dtype=torch.float64)
    _require_finite(slices, merge_all(*arrays, numbers, change.numpy(), None)[-1])
    return change


def written_at_once(
    combine: Combine, slices: Sequence[Slice], base: Float[Tensor, " entries"], cast: Cast
) -> tuple[BFloat16[Tensor, " entries"], Squares] | None:
    """Return ``base + change`` rounded once, and the inner products, if one loop does it all.

    One does for a bfloat16 model to the nearest bfloat16, if the formula is compiled; but not for a
    single delta as it is, whose fine-tuned entries may be restored.

    Args:
        combine: The method.
        slices: Of every term that acts; at least one.
        base: These entries of the checkpoint that the deltas were taken from.
        cast: How to round.

    Raises:
        NonFiniteError: A term holds NaN or infinity, or a sum does not fit bfloat16.
    """
    plain = base.dtype == cast.dtype == torch.bfloat16 and cast.rounding == "nearest"
    numbers = _numbers(combine, slices) if plain else None
    if numbers is None or (len(slices) == 1 and slices[0].alpha == 1.0):
        return None
    out = torch.empty_like(base)
    bits = out.view(torch.uint16).numpy()
    *squares, bad = merge_all(*_arrays(slices, base), numbers, np.empty(BLOCK), bits)
    _require_finite(slices, bad)
    require_fit(out, lambda: base.double() + changed(combine, slices))
    return out, Squares(*squares)


def _numbers(combine: Combine, slices: Sequence[Slice]) -> tuple[Any, ...] | None:
    """Return a formula as the compiled loops take it, or ``None`` if they cannot, or not here."""
    if not isinstance(combine, Formula) or not isinstance(combine.consensus, Vote):
        return None
    kept = list(map(combine.keep, slices))
    drop_rate, *others = {k.drop_rate for k in kept}
    if others or callable(drop_rate) or slices[0].device != "cpu":
        return None
    return (
        np.array([s.alpha for s in slices]),
        np.array([k.low for k in kept], np.float32),
        np.array([k.high for k in kept], np.float32),
        np.array([s.key for s in slices], np.uint64),
        np.int64(slices[0].part.start),
        np.uint64(math.ceil(float(np.float32(drop_rate)) * 2**24)),
        1.0 - drop_rate,
        np.int64(_CONSENSUS[combine.consensus.over]),
        combine.consensus.by_count,
        combine.lambda_,
    )


def _require_finite(slices: Sequence[Slice], bad: int) -> None:
    """Raise NonFiniteError for the term of number ``bad``; -1 stands for none."""
    if bad < 0:
        return
    culprit = slices[bad]
    with blame(delta=culprit.term.delta.label):
        for end in culprit.term.ends(culprit.name) or ():
            require_finite(end, culprit.name, culprit.part)


def _arrays(slices: Sequence[Slice], base: Tensor | None = None) -> tuple[Any, Any]:
    """Return base and terms: bits of bfloat16 weights if all are, else float64 base and deltas.

    Without a base given it is that of the first term, if its weights are bfloat16.
    """
    ends = [s.term.ends(s.name) for s in slices]
    if base is None and ends[0]:
        base = require_finite(ends[0][1], slices[0].name, slices[0].part)
    if base is None or base.dtype != torch.bfloat16 or None in ends:
        terms = torch.stack([s.delta for s in slices])
        return (terms[0] if base is None else base.double()).numpy(), terms.numpy()
    rows = torch.empty((len(slices), base.numel()), dtype=torch.bfloat16)
    for row, s, (tuned, _) in zip(rows, slices, filter(None, ends), strict=True):
        tuned.part(s.name, s.part, row)
    return base.view(torch.uint16).numpy(), rows.view(torch.uint16).numpy()


def added(
    change: Float64[Tensor, " entries"],
    slices: Sequence[Slice],
    base: Float[Tensor, " entries"],
    cast: Cast,
) -> tuple[Float[Tensor, " entries"], Squares]:
    """Return ``base + change`` in float64, rounded once, and the inner products.

    Where the change is exactly that of one delta, the entries are the fine-tuned ones themselves.

    Args:
        change: What the terms amount to, on the device where the sum is computed.
        slices: Of every term that acts; at least one.
        base: The entries that the change is added to, in their dtype.
        cast: How to round.

    Raises:
        NonFiniteError: A sum does not fit the dtype.
    """
    written = _restored(slices, change, base)
    if written is not None and written.dtype == cast.dtype:
        return written, Squares(*projection(base.to(change.device).double(), change, written))
    if cast.rounding == "nearest":
        written, squares = summed(base, change, cast.dtype)
        require_fit(written, lambda: base.to(change.device).double() + change)
        return written, Squares(*squares)
    start = base.to(change.device).double()
    written = cast.rounded(start + change, slices[0].part.start)
    return written, Squares(*projection(start, change, written))


def is_one_delta(slices: Sequence[Slice], change: Float64[Tensor, " entries"]) -> bool:
    """Return whether a change is exactly that of one delta."""
    return len(slices) == 1 and torch.equal(change, slices[0].delta)


def _restored(
    slices: Sequence[Slice],
    change: Float64[Tensor, " entries"],
    base: Float[Tensor, " entries"],
) -> Float[Tensor, " entries"] | None:
    """Return fine-tuned entries themselves, where the change is exactly that of their delta.

    Args:
        slices: Of all terms.
        change: What they amount to.
        base: The entries that the change is to be added to. Unless they are those that the delta
            was taken from, nothing is restored.
    """
    if not is_one_delta(slices, change):
        return None
    (only,) = slices
    start, ends = base.cpu(), only.term.difference
    tuned = only.term.delta.source.tuned_part(only.name, only.part, start)
    if tuned is None:
        return None
    if ends is not None:
        stored = require_finite(ends.base, only.name, only.part)
        same = stored.dtype == start.dtype and torch.equal(stored, start)
    else:  # A delta that was saved is rounded to float32.
        same = torch.equal(difference(tuned, start).float(), only.delta.cpu().float())
    return tuned.to(change.device) if same else None
