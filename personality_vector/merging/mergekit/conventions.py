"""mergekit's generalised task arithmetic in mergekit's own conventions, on our engine.

Eight methods are a choice of entries to keep in each delta, and whether a sign is elected. They
follow mergekit 0.1.5 operation by operation in its dtype, with these choices where it is arbitrary
or random: of equal magnitudes the first entries are kept, and random masks are those of our
counter-based generator.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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


@dataclass(frozen=True, slots=True)
class Keep:
    """Says which entries of one tensor are kept.

    Attributes:
        mask: From a slice to the entries that are kept of it.
        dtype: The dtype in which mergekit masks and rescales.
    """

    mask: Mask
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the order by magnitude, then by index, which runs backwards if ``descending``."""

    magnitude: float
    index: int
    descending: bool

    def reached(self, magnitude: Tensor, index: Tensor) -> Bool[Tensor, " entries"]:
        """Return which entries lie at this place or beyond it."""
        beyond = index <= self.index if self.descending else index >= self.index
        return (magnitude > self.magnitude) | ((magnitude == self.magnitude) & beyond)


@dataclass(frozen=True, slots=True)
class Precision:
    """Holds the dtypes of one tensor: in all checkpoints, in mergekit's arithmetic, as written."""

    stored: torch.dtype
    dtype: torch.dtype
    written: torch.dtype

    @property
    def narrows(self) -> bool:
        """Whether mergekit rounds what it reads."""
        return torch.promote_types(self.stored, self.dtype) != self.dtype


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
        acting = [s for s in slices if self.models[s.term.position] in values.of]
        if not acting:
            return torch.zeros_like(slices[0].delta)
        acting.sort(key=lambda s: s.term.position)
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
        if precision.written == precision.dtype:
            return start.double() + mixed.double() - base
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
            elected = torch.where(weighted.sum(dim=0) >= 0, 1.0, -1.0)
            agrees = weighted.sign() == elected
            mixed, divisor = (weighted * agrees).sum(dim=0), (weights * agrees).sum(dim=0)
            divisor[divisor == 0] = 1
        else:
            mixed, divisor = weighted.sum(dim=0), weights.sum(dim=0)
            divisor[divisor.abs() < 1e-8] = 1  # as mergekit: no division by a sum of about zero
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
        keep = self._keep(s, own, delta.dtype)
        kept = delta.to(keep.dtype) * keep.mask(s, delta)
        if values.shared["rescale"]:
            kept = kept * self._scale(s, keep)
        return kept.to(delta.dtype)

    def _keep(self, s: Slice, own: Mapping[str, Scalar], dtype: torch.dtype) -> Keep:
        """Return what is kept of the tensor that ``s`` is a part of."""
        density, trim = float(own["density"]), self.convention.trim
        if trim == "magnitude":
            # Exactly this many, and of equal magnitudes the first.
            rank, what = max(1, int(density * s.size)) - 1, f"top {density}"
            (end,) = _places(what, self._delta, s, [rank], descending=True)
            return Keep(lambda s, delta: end.reached(*_order(s, delta)), dtype)
        if trim == "outliers":
            return Keep(_middle(density, float(own["gamma"]), self._delta, s), dtype)
        # mergekit draws in float32, but for bfloat16, in which a density of 0.9 is 0.8984.
        drawn = dtype if dtype == torch.bfloat16 else torch.float32
        if trim == "random":
            share = float(torch.tensor(density, dtype=drawn))
            return Keep(lambda s, delta: s.uniform() < share, drawn)  # noqa: ARG005
        return Keep(_ranked(density, float(own["epsilon"]), drawn), drawn)

    def _scale(self, s: Slice, keep: Keep) -> Float[Tensor, ""]:
        """Return the L1 norm of the tensor over that of what is kept, in mergekit's dtype."""
        before, after = s.survey("mergekit: L1 norms", lambda stream: self._norms(stream(), keep))
        whole, kept = (torch.tensor(norm, dtype=keep.dtype) for norm in (before, after))
        scale = torch.ones_like(kept) if whole < _SMALL or kept < _SMALL else whole / kept
        return scale.to(s.delta.device)

    def _norms(self, slices: Iterable[Slice], keep: Keep) -> tuple[float, float]:
        before = after = 0.0
        for s in slices:
            delta = self._delta(s)
            size = delta.double().abs()
            before += float(size.sum())
            after += float((size * keep.mask(s, delta)).sum())
        return before, after

    def _delta(self, s: Slice) -> Float[Tensor, " entries"]:
        """Return the difference of the two models after each was rounded to mergekit's dtype."""
        precision = self.precisions[s.name]
        if not precision.narrows:
            return s.delta.to(precision.dtype)
        base = self._base(s)
        return (base + s.delta).to(precision.dtype) - base.to(precision.dtype)

    def _base(self, s: Slice) -> Float64[Tensor, " entries"]:
        return self.base.part(s.name, s.part).to(s.delta.device).double()


def _middle(density: float, gamma: float, read: Read, s: Slice) -> Mask:
    """Drop ``int(gamma * n)`` of the largest magnitudes, keep the next ``int(density * n)``."""
    count = int(density * s.size)
    first = max(0, s.size - count - int(gamma * s.size))
    what = f"{density} below the top {gamma}"
    low, high = _places(what, read, s, [first, first + count], descending=False)

    def mask(s: Slice, delta: Tensor) -> Tensor:
        order = _order(s, delta)
        return low.reached(*order) & ~high.reached(*order)

    return mask


def _ranked(density: float, epsilon: float, dtype: torch.dtype) -> Mask:
    """Keep an entry with ``density - epsilon + 2 epsilon r``, ``r`` its rank in its row.

    ``r`` is 0 for the smallest and 1 for the largest; equal magnitudes rank from left to right.
    """

    def mask(s: Slice, delta: Tensor) -> Tensor:
        rows = delta.abs().reshape(delta.numel() // s.columns, s.columns)
        order = rows.argsort(dim=1, stable=True)
        numbers = torch.arange(s.columns, device=delta.device).to(dtype) + 1
        span = (numbers[-1] - numbers[0]) if s.columns > 1 else torch.ones_like(numbers[0])
        shares = (density - epsilon) + ((numbers - numbers[0]) / span).clamp(0, 1) * 2 * epsilon
        kept_with = torch.empty_like(rows, dtype=dtype)
        kept_with.scatter_(1, order, shares.expand_as(rows))
        return s.uniform() < kept_with.reshape(-1).float()

    return mask


def _order(s: Slice, delta: Tensor) -> tuple[Tensor, Tensor]:
    """Return the magnitude and the index of each entry of a slice."""
    index = torch.arange(s.part.start, s.part.start + delta.numel(), device=delta.device)
    return delta.abs().float(), index


def _places(
    what: str, read: Read, s: Slice, ranks: Sequence[int], *, descending: bool
) -> list[Place]:
    """Return the entries of some ranks, found once for the tensor that ``s`` is a part of."""

    def find(stream: Callable[[], Iterator[Slice]]) -> list[Place]:
        def deltas() -> Iterator[Tensor]:
            return (read(one).double() for one in stream())

        return [_place(deltas, s.size, rank, descending=descending) for rank in ranks]

    return s.survey(f"mergekit: {what}", find)


def _place(
    deltas: Callable[[], Iterator[Tensor]], size: int, rank: int, *, descending: bool
) -> Place:
    """Return the entry of a rank, from 0; of equal magnitudes the first entry has the lowest rank.

    One beyond the last has an infinite magnitude.
    """
    if rank >= size:
        return Place(math.inf, size, descending)
    number = rank + 1 if descending else size - rank  # among the largest, from 1

    def count(low: int, shift: int, counts: Tensor) -> int:
        return sum(count_magnitudes(delta, None, low, shift, counts)[0] for delta in deltas())

    sample = torch.cat([delta[::61] for delta in deltas()])
    # The half keeps int(share * size) from falling short by rounding; all have a threshold of 0.
    share = min(1.0, (number + 0.5) / size)
    threshold = magnitude_threshold([count], size, sample, share)
    above = equal = 0
    for delta in deltas():
        magnitude = delta.abs()
        above += int((magnitude > threshold).sum())
        equal += int((magnitude == threshold).sum())
    nth = rank - (above if descending else size - above - equal)
    return Place(threshold, _index_of(deltas(), threshold, nth), descending)


def _index_of(deltas: Iterator[Tensor], magnitude: float, nth: int) -> int:
    """Return the index of the ``nth`` entry, from 0, of this magnitude; -1 if there is none."""
    start = 0
    for delta in deltas:
        found = (delta.abs() == magnitude).nonzero().reshape(-1)
        if nth < found.numel():
            return start + int(found[nth]) if nth >= 0 else -1
        nth -= found.numel()
        start += delta.numel()
    return -1
