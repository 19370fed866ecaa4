"""Which entries of a delta mergekit keeps: by magnitude, without outliers, at random, by rank."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from personality_vector.merging.mergekit.recipe import Scalar
from personality_vector.merging.terms import Slice, magnitude_threshold
from personality_vector.numeric.kernels import count_magnitudes

Trim = Literal["nothing", "magnitude", "outliers", "random", "ranked"]
Stream = Callable[[], Iterator[Slice]]
Mask = Callable[[Slice, Tensor], Bool[Tensor, " entries"]]
"""From a slice and its delta in mergekit's dtype to what is kept of it."""


@dataclass(frozen=True, slots=True)
class Keep:
    """The entries of one tensor that are kept.

    Attributes:
        mask: Of a slice.
        dtype: In which mergekit masks and rescales.
    """

    mask: Mask
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Place:
    """An entry in the order by magnitude, of equal ones by index: backwards if ``descending``."""

    magnitude: float
    index: int
    descending: bool

    def reached(self, magnitude: Tensor, index: Tensor) -> Bool[Tensor, " entries"]:
        """Return which entries are this one, or larger, or in the order of equal ones beyond it."""
        beyond = index <= self.index if self.descending else index >= self.index
        return (magnitude > self.magnitude) | ((magnitude == self.magnitude) & beyond)


@dataclass(frozen=True, slots=True)
class Whole:
    """A tensor that is to be trimmed: its number of entries, and how its delta is read.

    Attributes:
        size: Number of entries.
        dtype: Of mergekit's arithmetic.
        read: From a slice to its delta in that dtype.
    """

    size: int
    dtype: torch.dtype
    read: Callable[[Slice], Tensor]


def keeper(trim: Trim, own: Mapping[str, Scalar], whole: Whole, s: Slice) -> Keep:
    """Return what is kept of the tensor that ``s`` is a part of.

    Args:
        trim: By which rule.
        own: ``density``, and ``gamma`` or ``epsilon``.
        whole: The tensor.
        s: Asked for what has to be known of the whole tensor.
    """
    density, dtype = float(own["density"]), whole.dtype
    if trim == "magnitude":
        return Keep(_largest(density, whole, s), dtype)
    if trim == "outliers":
        return Keep(_middle(density, float(own["gamma"]), whole, s), dtype)
    # mergekit draws in float32, but for bfloat16, in which a density of 0.9 is 0.8984.
    drawn = dtype if dtype == torch.bfloat16 else torch.float32
    if trim == "random":
        share = float(torch.tensor(density, dtype=drawn))
        return Keep(lambda s, delta: s.uniform() < share, drawn)  # noqa: ARG005
    return Keep(_ranked(density, float(own["epsilon"]), drawn), drawn)


def _largest(density: float, whole: Whole, s: Slice) -> Mask:
    """Keep exactly ``max(1, int(density * n))`` of the largest magnitudes, the first if equal."""

    def last(stream: Stream) -> Place:
        return _place(stream, whole, max(1, int(density * whole.size)) - 1, descending=True)

    end = s.survey(f"mergekit: top {density}", last)
    return lambda s, delta: end.reached(*_order(s, delta))


def _middle(density: float, gamma: float, whole: Whole, s: Slice) -> Mask:
    """Drop ``int(gamma * n)`` of the largest magnitudes, keep the next ``int(density * n)``."""

    def ends(stream: Stream) -> tuple[Place, Place]:
        count = int(density * whole.size)
        first = max(0, whole.size - count - int(gamma * whole.size))
        low = _place(stream, whole, first, descending=False)
        return low, _place(stream, whole, first + count, descending=False)

    low, high = s.survey(f"mergekit: {density} below the top {gamma}", ends)

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
    index = torch.arange(s.start, s.start + delta.numel(), device=delta.device)
    return delta.abs().float(), index


def _place(stream: Stream, whole: Whole, rank: int, *, descending: bool) -> Place:
    """Return the entry of a rank, from 0; of equal magnitudes the first entry has the lowest rank.

    One beyond the last has an infinite magnitude.
    """
    if rank >= whole.size:
        return Place(math.inf, whole.size, descending)
    number = rank + 1 if descending else whole.size - rank  # among the largest, from 1

    def deltas() -> Iterator[Tensor]:
        return (whole.read(s).double() for s in stream())

    def count(low: int, shift: int, counts: Tensor) -> int:
        return sum(count_magnitudes(delta, None, low, shift, counts)[0] for delta in deltas())

    sample = torch.cat([delta[::61] for delta in deltas()])
    # The half keeps int(share * size) from falling short by rounding; all have a threshold of 0.
    share = min(1.0, (number + 0.5) / whole.size)
    threshold = magnitude_threshold([count], whole.size, sample, share)
    above = equal = 0
    for delta in deltas():
        magnitude = delta.abs()
        above += int((magnitude > threshold).sum())
        equal += int((magnitude == threshold).sum())
    nth = number - above - 1 if descending else rank - (whole.size - above - equal)
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
