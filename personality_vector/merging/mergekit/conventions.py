"""mergekit's generalised task arithmetic in mergekit's own conventions, on our engine.

Eight methods are a choice of entries to keep in each delta, and whether a sign is elected. They
follow mergekit 0.1.5 operation by operation in its dtype, with these choices where it is arbitrary
or random: of equal magnitudes the first entries are kept, and random masks are those of our
counter-based generator.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from personality_vector.checkpoint import Checkpoint
from personality_vector.merging.formula import Combine
from personality_vector.merging.mergekit.recipe import Scalar
from personality_vector.merging.mergekit.settings import Convention, Values
from personality_vector.merging.terms import Slice, magnitude_threshold
from personality_vector.numeric.kernels import count_magnitudes

_SMALL = 1e-7
"""An L1 norm below it is not rescaled."""

Read = Callable[[Slice], Tensor]
"""From a slice to its delta in mergekit's dtype."""

Mask = Callable[[Slice, Tensor], Bool[Tensor, " entries"]]
"""From a slice and its delta in mergekit's dtype to what is kept of it."""

Stream = Callable[[], Iterator[Slice]]
"""Yields the slices of a tensor in order, each time that it is called."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Holds how mergekit treats one tensor.

    Attributes:
        dtype: The dtype that it computes in.
        written: The dtype that it writes.
        narrows: Whether it rounds what it reads, since a checkpoint holds a wider dtype.
    """

    dtype: torch.dtype
    written: torch.dtype
    narrows: bool


@dataclass(frozen=True)
class TaskArithmetic(Combine):
    """One of mergekit's conventions with its options fixed.

    Attributes:
        convention: The convention.
        models: The model of each term, by the name that it has in :attr:`values`.
        values: The parameters by tensor.
        precisions: The dtypes by tensor.
        base: The base, read again where the dtype is narrower than that of the checkpoints.
    """

    convention: Convention
    models: Sequence[str]
    values: Mapping[str, Values]
    precisions: Mapping[str, Precision]
    base: Checkpoint

    def __call__(self, slices: Sequence[Slice]) -> Float64[Tensor, " entries"]:
        """Return the change of the base that mergekit would write, before its last rounding."""
        name = slices[0].name
        values = self.values[name]
        in_order = sorted(slices, key=lambda s: s.term.position)
        acting = [s for s in in_order if self.models[s.term.position] in values.of]
        if not acting:
            return torch.zeros_like(slices[0].delta)
        dtype = self.precisions[name].dtype
        given = [values.of[self.models[s.term.position]]["weight"] for s in acting]
        weights = torch.tensor(given, dtype=dtype, device=acting[0].delta.device)[:, None]
        weighted = torch.stack([self._sparse(s) for s in acting]) * weights
        return self._change(acting[0], self._mixed(weighted, weights, values.shared))

    def _change(self, s: Slice, mixed: Float[Tensor, " entries"]) -> Float64[Tensor, " entries"]:
        """Return ``mixed`` as a change of the base as it is stored, with mergekit's roundings.

        The last one is left to the engine: it also measures what is lost by it.
        """
        precision = self.precisions[s.name]
        if not precision.narrows and precision.written == precision.dtype:
            return mixed.double()
        base = self._base(s)
        start = base.to(precision.dtype)
        if precision.written == precision.dtype:  # the engine rounds the sum to this dtype
            start, mixed = start.double(), mixed.double()
        return (start + mixed).double() - base

    def _mixed(
        self,
        weighted: Float[Tensor, "n entries"],
        weights: Float[Tensor, "n 1"],
        shared: Mapping[str, Scalar],
    ) -> Float[Tensor, " entries"]:
        """Return the sum of the terms (that agree), divided by the sum of weights, times lambda."""
        if self.convention.elects:
            # A sum of zero elects the positive sign.
            agrees = weighted.sign() == torch.where(weighted.sum(dim=0) >= 0, 1.0, -1.0)
            weighted, weights = weighted * agrees, weights * agrees
        mixed, divisor = weighted.sum(dim=0), weights.sum(dim=0)
        # As mergekit: no division by a sum of zero, or of about zero.
        divisor[divisor == 0 if self.convention.elects else divisor.abs() < 1e-8] = 1
        if shared["normalize"]:
            mixed = mixed / divisor
        return mixed if shared["lambda"] == 1 else mixed * shared["lambda"]

    def _sparse(self, s: Slice) -> Float[Tensor, " entries"]:
        """Return what is kept of a term's delta, rescaled."""
        values = self.values[s.name]
        own = values.of[self.models[s.term.position]]
        delta, density = self._delta(s), float(own["density"])
        if self.convention.trim == "nothing" or density >= 1.0:
            return delta
        if density <= 0.0:
            return torch.zeros_like(delta)
        is_drawn = self.convention.trim in ("random", "ranked")
        # mergekit draws in float32, but for bfloat16, in which a density of 0.9 is 0.8984.
        dtype = torch.float32 if is_drawn and delta.dtype != torch.bfloat16 else delta.dtype
        if is_drawn:
            epsilon = float(own["epsilon"]) if self.convention.trim == "ranked" else None
            mask = _drawn(density, epsilon, dtype)
        else:
            mask = self._by_magnitude(s, density, float(own.get("gamma", 0.0)))
        kept = delta.to(dtype) * mask(s, delta)
        if values.shared["rescale"]:
            kept = kept * self._scale(s, mask, dtype)
        return kept.to(delta.dtype)

    def _by_magnitude(self, s: Slice, density: float, gamma: float) -> Mask:
        """Keep the largest of the tensor; or leave out a share and keep the next largest."""
        count = int(density * s.size)
        if self.convention.trim == "magnitude":
            return _top(self._delta, s, max(1, count))
        reached = min(s.size, count + int(gamma * s.size))
        outer, outliers = (
            _top(self._delta, s, number, last=True) for number in (reached, reached - count)
        )
        return lambda s, delta: outer(s, delta) & ~outliers(s, delta)

    def _scale(self, s: Slice, mask: Mask, dtype: torch.dtype) -> Float[Tensor, ""]:
        """Return the L1 norm of the tensor over that of what is kept, in mergekit's dtype."""

        def norms(stream: Stream) -> Float64[Tensor, "2"]:
            total = torch.zeros(2, dtype=torch.float64)
            for one in stream():
                delta = self._delta(one)
                size = delta.double().abs()
                total += torch.stack([size.sum(), (size * mask(one, delta)).sum()]).cpu()
            return total

        whole, kept = s.survey("mergekit: L1 norms", norms).to(dtype)
        scale = torch.ones_like(kept) if whole < _SMALL or kept < _SMALL else whole / kept
        return scale.to(s.delta.device)

    def _delta(self, s: Slice) -> Float[Tensor, " entries"]:
        """Return the difference of the two models after each was rounded to mergekit's dtype."""
        precision = self.precisions[s.name]
        if not precision.narrows:
            return s.delta.to(precision.dtype)
        base = self._base(s)
        return (base + s.delta).to(precision.dtype) - base.to(precision.dtype)

    def _base(self, s: Slice) -> Float64[Tensor, " entries"]:
        return self.base.part(s.name, s.part).to(s.delta.device).double()


def _drawn(density: float, epsilon: float | None, dtype: torch.dtype) -> Mask:
    """Keep an entry with probability ``density``, or ``density - epsilon + 2 epsilon r``.

    ``r`` is the rank of the entry in its row, 0 for the smallest and 1 for the largest; equal
    magnitudes rank from left to right.
    """

    def mask(s: Slice, delta: Tensor) -> Tensor:
        if epsilon is None:
            return s.uniform() < float(torch.tensor(density, dtype=dtype))
        rows = delta.abs().reshape(delta.numel() // s.columns, s.columns)
        order = rows.argsort(dim=1, stable=True)
        numbers = torch.arange(s.columns, device=delta.device).to(dtype) + 1
        ranks = numbers - numbers[0]
        shares = (density - epsilon) + (ranks / ranks[-1].clamp(1)).clamp(0, 1) * 2 * epsilon
        kept_with = torch.empty_like(rows, dtype=dtype)
        kept_with.scatter_(1, order, shares.expand_as(rows))
        return s.uniform() < kept_with.reshape(-1).float()

    return mask


def _top(read: Read, s: Slice, number: int, *, last: bool = False) -> Mask:
    """Keep exactly the ``number`` largest magnitudes of the tensor that ``s`` is a part of.

    Of equal magnitudes the first entries are kept, or the ``last``.
    """
    edge, end = s.survey(
        f"mergekit: top {number}, last {last}",
        lambda stream: _entry_at(lambda: map(read, stream()), s.size, number, last=last),
    )

    def mask(s: Slice, delta: Tensor) -> Tensor:
        magnitude = delta.abs().float()
        index = torch.arange(s.part.start, s.part.start + delta.numel(), device=delta.device)
        within = index >= end if last else index <= end
        return (magnitude > edge) | ((magnitude == edge) & within)

    return mask


def _entry_at(
    deltas: Callable[[], Iterator[Tensor]], size: int, number: int, *, last: bool
) -> tuple[float, int]:
    """Return magnitude and index of the least of the ``number`` largest entries; see :func:`_top`.

    Where these are all entries or none, the magnitude is one that all exceed, or none reaches.
    """
    if not 0 < number < size:
        return (-math.inf if number else math.inf), 0

    def count(low: int, shift: int, counts: Tensor) -> int:
        return sum(count_magnitudes(one.double(), None, low, shift, counts)[0] for one in deltas())

    sample = torch.cat([delta[::61] for delta in deltas()])
    # The half keeps int(share * size) from falling short by rounding.
    edge = magnitude_threshold([count], size, sample, (number + 0.5) / size)
    larger = sum(int((delta.abs() > edge).sum()) for delta in deltas())
    equal = sum(int((delta.abs() == edge).sum()) for delta in deltas())
    nth = larger + equal - number if last else number - larger - 1  # of the equal ones, from 0
    start, index = 0, -1
    for delta in deltas():
        found = (delta.abs() == edge).nonzero().reshape(-1)
        if 0 <= nth < found.numel():
            index = start + int(found[nth])
        nth -= found.numel()
        start += delta.numel()
    return edge, index
