"""The terms of a merge, the slices of them that a method sees, and their magnitude thresholds."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from personality_vector.checkpoint import Checkpoint
from personality_vector.delta import Delta, Difference, Restricted, require_finite
from personality_vector.errors import blame
from personality_vector.numeric.kernels import count_magnitudes, difference
from personality_vector.numeric.parallel import cores, in_parallel
from personality_vector.numeric.random import uniform
from personality_vector.progress import progress

T = TypeVar("T")

Alpha = float | tuple[float, ...] | Mapping[str, float]
"""A number; numbers over depth, interpolated; or numbers by word or name pattern."""

CHUNK = 1 << 18
"""Entries that are read at once: of six bfloat16 models 3 MB, which a cache holds."""

BATCH = 1 << 21
"""Entries that a thread takes at once."""

LONGEST_ROW = 1 << 20
"""A longer one is cut, so that a method that ranks rows cannot have it."""

_SAMPLE = 1 << 20
"""Number of entries, over all tensors, from each of four places of a run, that a threshold is
guessed from."""

_BINS = 1 << 16
_AROUND = 2 * _BINS
"""How many numbers around the guess are told apart: 0.8 % of it to each side, or more."""

_MANY = 64
"""Number of runs from which counting them takes long enough for a progress bar."""

Count = Callable[[int, int, Int64[Tensor, " bins"]], int]
"""Adds a run of magnitudes to a histogram, given its lowest bits and the shift of a bin; returns
how many lie above. See :func:`personality_vector.numeric.kernels.count_magnitudes`."""


@dataclass(slots=True)
class Term:
    """Holds a delta and its alpha, and keeps what has been measured of them.

    Attributes:
        delta: The delta.
        alpha: As it was given.
        alpha_at: From the name of a tensor to its alpha.
        position: Place of the term in the recipe, from 0.
        remarks: What else a manifest says about it.
        inputs: What is read in addition to the sources of the delta.
    """

    delta: Delta
    alpha: Alpha
    alpha_at: Callable[[str], float]
    position: int
    remarks: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[Path, ...] = ()
    _measured: dict[tuple[str | None, str], Any] = field(default_factory=dict)

    def once(self, what: tuple[str | None, str], measure: Callable[[], T]) -> T:
        """Return a measurement, made the first time that it is asked for."""
        if what not in self._measured:
            self._measured[what] = measure()
        return cast("T", self._measured[what])

    @property
    def difference(self) -> Difference | None:
        """The two checkpoints that the delta is the difference of, if that is what it is."""
        source = self.delta.source
        source = source.source if isinstance(source, Restricted) else source
        return source if isinstance(source, Difference) else None

    def ends(self, name: str) -> tuple[Checkpoint, Checkpoint] | None:
        """Return fine-tuned model and base, if a tensor is bfloat16 in both."""
        found = self.difference
        ends = (found.tuned, found.base) if found else None
        narrow = ends and all(end.entries[name].dtype == torch.bfloat16 for end in ends)
        return ends if narrow else None

    def threshold(self, density: float, name: str | None) -> float:
        """Return the magnitude that the top ``density`` reaches, of one tensor or of all."""
        names = self.delta.names if name is None else [name]
        batches = [(name, batch) for name in names for batch in runs(self.delta.shape(name), BATCH)]
        if not batches:
            return 0.0
        counts = [partial(self._count, name, batch) for name, batch in batches]
        most = max(16, min(2048, _SAMPLE // len(batches)))
        sample = torch.cat([self._sample(name, batch, most) for name, batch in batches])
        size = sum(batch.stop - batch.start for _, batch in batches)
        return magnitude_threshold(counts, size, sample, density)

    def _count(self, name: str, batch: slice, low: int, shift: int, counts: Tensor) -> int:
        """Count the magnitudes of a run of entries; see :func:`count_magnitudes`."""
        above, ends = 0, self.ends(name)
        with blame(delta=self.delta.label, tensor=name):
            for part in runs(self.delta.shape(name), 2 * CHUNK, batch):
                entries = (ends[0] if ends else self.delta.source).part(name, part)
                base = ends[1].part(name, part) if ends else None
                larger, infinite = count_magnitudes(entries, base, low, shift, counts)
                for end in ends if ends and infinite else ():
                    require_finite(end, name, part)
                above += larger
        return above

    def _sample(self, name: str, batch: slice, most: int) -> Tensor:
        """Return at most ``most`` entries from each of four places of a run."""
        quarter = max(1, (batch.stop - batch.start) // 4)
        starts = range(batch.start, batch.stop, quarter)
        parts = (slice(start, min(start + min(quarter, most), batch.stop)) for start in starts)
        with blame(delta=self.delta.label, tensor=name):
            return torch.cat([self.delta.source.part(name, part).float() for part in parts])


@dataclass(frozen=True, eq=False)
class Slice:
    """Holds the part of one tensor of one term, as a method sees it.

    Attributes:
        term: The term.
        name: Name of the tensor.
        part: The entries, row-major.
        key: Key of the random stream of the term in this tensor.
        device: Where the merge is computed.
    """

    term: Term
    name: str
    part: slice
    key: int
    device: str

    @property
    def alpha(self) -> float:
        """The term's alpha for this tensor."""
        return self.term.alpha_at(self.name)

    @property
    def size(self) -> int:
        """Number of entries of the whole tensor."""
        return math.prod(self.term.delta.shape(self.name))

    @property
    def columns(self) -> int:
        """Length of a row of the tensor: its last dimension."""
        return columns_of(self.term.delta.shape(self.name))

    @cached_property
    def delta(self) -> Float64[Tensor, " entries"]:
        """The term's delta, on the device of the merge; read once."""
        if self.part.start == self.part.stop:
            return torch.empty(0, dtype=torch.float64, device=self.device)
        delta, ends = self.term.delta, self.term.ends(self.name)
        with blame(delta=delta.label):
            if self.device == "cpu" or ends is None:
                return delta.source.part(self.name, self.part).to(self.device)
            # Two weights of two bytes reach a device faster than one difference of eight.
            raw = (require_finite(end, self.name, self.part).to(self.device) for end in ends)
            return difference(*raw)

    def uniform(self) -> Float32[Tensor, " entries"]:
        """Return random numbers in [0, 1): fixed by seed, term, tensor and index of the entry."""
        return uniform(self.key, self.part.start, self.part.stop - self.part.start, self.device)

    def threshold(self, density: float, scope: str) -> float:
        """Return the magnitude that the top ``density`` of the whole term or tensor reaches."""
        name = None if scope == "global" else self.name
        return self.term.once((name, f"top {density}"), lambda: self.term.threshold(density, name))

    def survey(self, what: str, measure: Callable[[Callable[[], Iterator["Slice"]]], T]) -> T:
        """Return a measurement of this term's whole tensor, made once and kept under ``what``.

        ``measure`` gets a function that yields the slices of the tensor in order.
        """
        shape = self.term.delta.shape(self.name)

        def slices() -> Iterator[Slice]:
            return (replace(self, part=part) for part in runs(shape, CHUNK))

        return self.term.once((self.name, what), lambda: measure(slices))


def columns_of(shape: Sequence[int]) -> int:
    """Return the length of a row: the last dimension; a vector is one row."""
    return shape[-1] if shape else 1


def runs(shape: Sequence[int], size: int, within: slice | None = None) -> list[slice]:
    """Return slices of about ``size`` entries that cover a tensor, in whole rows.

    The cuts depend on the shape alone, so that the same recipe writes the same bytes. Only a row of
    more than a million entries is cut.

    >>> runs((5, 3), 6)
    [slice(0, 6, None), slice(6, 12, None), slice(12, 15, None)]
    """
    whole = within or slice(0, torch.Size(shape).numel())
    cuts = [*range(whole.start, whole.stop, _step(shape, size)), whole.stop]
    return [slice(start, stop) for start, stop in pairwise(cuts)]


def runs_over(shape: Sequence[int], part: slice, device: str = "cpu") -> Iterator[slice]:
    """Yield the runs that a merge computes at once, of those that hold entries of ``part``.

    >>> list(runs_over((3, 200_000), slice(450_000, 450_001)))
    [slice(400000, 600000, None)]
    """
    stop, step = torch.Size(shape).numel(), _step(shape, BATCH)
    first = part.start // step * step
    for start in range(first, part.stop, step):
        batch = slice(start, min(start + step, stop))
        # A GPU has no cache to fit into, and each of its operations a price of its own.
        for run in runs(shape, CHUNK, batch) if device == "cpu" else [batch]:
            if run.start < part.stop and part.start < run.stop:
                yield run


def _step(shape: Sequence[int], size: int) -> int:
    columns = columns_of(shape)
    return size if not 0 < columns <= LONGEST_ROW else max(1, size // columns) * columns


def magnitude_threshold(
    counts: Sequence[Count], size: int, sample: Float[Tensor, " sample"], density: float
) -> float:
    """Return the ``k``-th largest float32 magnitude of a vector, ``k = max(1, int(density * n))``.

    It is exact, without sorting, in bounded memory. The bits of a non-negative float32, read as a
    whole number, order as the floats do. A sample says where the threshold should lie; a histogram
    of the bits around it, one bin for each number, and the count of all that are larger say where
    it does lie: one streaming pass. If it lies elsewhere, a histogram of all numbers by their upper
    16 bits finds the place, and another of that place the number: three passes.

    Keeping every entry with ``|x| >= threshold`` keeps the top ``density``; equal magnitudes at
    the threshold are all kept.

    Args:
        counts: Counters of its runs, which are called on all cores.
        size: Number ``n`` of its entries.
        sample: Some of its entries, for a guess that the count then proves or disproves.
        density: In (0, 1]; 1 keeps everything and counts nothing.

    Raises:
        ValueError: ``density`` outside (0, 1].
    """
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density must be in (0, 1], got {density}")
    if density == 1.0:
        return 0.0
    keep = max(1, int(density * size))
    magnitudes = sample.abs().float()
    smaller = magnitudes.numel() - max(1, int(density * magnitudes.numel()))
    likely = int(magnitudes.kthvalue(smaller + 1).values.view(torch.int32))
    guess = max(0, likely - _AROUND // 2)
    found = _bin_of(counts, keep, guess, 0, _AROUND)
    if found is None:
        place = _bin_of(counts, keep, 0, 16, _BINS) or 0
        found = _bin_of(counts, keep, place, 0, _BINS) or place
    return float(torch.tensor(found, dtype=torch.int32).view(torch.float32))


def _bin_of(parts: Sequence[Count], keep: int, low: int, shift: int, bins: int) -> int | None:
    """Return the lowest bits of the bin of the ``keep``-th largest magnitude, if one holds it."""

    def count(group: Sequence[Count]) -> tuple[Tensor, int]:
        counts = torch.zeros(bins, dtype=torch.int64)
        return counts, sum(part(low, shift, counts) for part in group)

    number = min(len(parts), 8 * cores())
    groups = [parts[i::number] for i in range(number)]
    shown = progress(groups, "survey") if len(parts) > _MANY else groups
    total, above = torch.zeros(bins, dtype=torch.int64), 0
    with closing(in_parallel(count, groups)) as counted:
        for _, (counts, larger) in zip(shown, counted, strict=True):
            total += counts
            above += larger
    if not above < keep <= above + int(total.sum()):
        return None
    from_top = above + total.flip(0).cumsum(0)
    return low + (bins - 1 - int((from_top < keep).sum()) << shift)
