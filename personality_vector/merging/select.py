"""The exact magnitude threshold of a top share, without sorting, in bounded memory.

The bits of a non-negative float32, read as a whole number, order as the floats do. A sample says
where the threshold should lie; a histogram of the bits around it, one bin for each number, and the
count of all that are larger say where it does lie: one streaming pass. If it lies elsewhere, a
histogram of all numbers by their upper 16 bits finds the place, and another of that place the
number: three passes.
"""

from collections.abc import Callable, Sequence
from contextlib import closing

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from personality_vector.numeric.parallel import cores, in_parallel
from personality_vector.progress import progress

_BINS = 1 << 16
_AROUND = 2 * _BINS
"""Numbers around the guess that are told apart: 0.8 % of it to each side, or more."""

_MANY = 64
"""Runs whose counting takes long enough for a progress bar."""

Count = Callable[[int, int, Int64[Tensor, " bins"]], int]
"""Adds a run of magnitudes to a histogram, given its lowest bits and the shift of a bin; returns
how many lie above. See :func:`personality_vector.numeric.kernels.count_magnitudes`."""


def magnitude_threshold(
    runs: Sequence[Count], size: int, sample: Float[Tensor, " sample"], density: float
) -> float:
    """Return the ``k``-th largest float32 magnitude of a vector, ``k = max(1, int(density * n))``.

    Keeping every entry with ``|x| >= threshold`` keeps the top ``density``; equal magnitudes at
    the threshold are all kept.

    Args:
        runs: Of the vector; counted on all cores.
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
    guess = max(0, _guess(sample, density) - _AROUND // 2)
    found = _bin_of(runs, keep, guess, 0, _AROUND)
    if found is None:
        place = _bin_of(runs, keep, 0, 16, _BINS) or 0
        found = _bin_of(runs, keep, place << 16, 0, _BINS) or 0
        guess = place << 16
    return float(torch.tensor(guess + found, dtype=torch.int32).view(torch.float32))


def _guess(sample: Tensor, density: float) -> int:
    """Return the bits of the threshold of a sample."""
    magnitudes = sample.abs().float()
    largest_but = magnitudes.numel() - max(1, int(density * magnitudes.numel()))
    return int(magnitudes.kthvalue(largest_but + 1).values.view(torch.int32))


def _bin_of(runs: Sequence[Count], keep: int, low: int, shift: int, bins: int) -> int | None:
    """Return the bin that holds the ``keep``-th largest magnitude, or ``None`` if none does."""

    def count(group: Sequence[Count]) -> tuple[Tensor, int]:
        counts = torch.zeros(bins, dtype=torch.int64)
        return counts, sum(run(low, shift, counts) for run in group)

    number = min(len(runs), 8 * cores())
    groups = [runs[i::number] for i in range(number)]
    shown = progress(groups, "survey") if len(runs) > _MANY else groups
    total, above = torch.zeros(bins, dtype=torch.int64), 0
    with closing(in_parallel(count, groups)) as counted:
        for _, (counts, larger) in zip(shown, counted, strict=True):
            total += counts
            above += larger
    if not above < keep <= above + int(total.sum()):
        return None
    from_top = above + total.flip(0).cumsum(0)
    return bins - 1 - int((from_top < keep).sum())
