"""The exact magnitude threshold of a top share, without sorting, in bounded memory.

The bit pattern of a non-negative float32 orders as the number does. A histogram of the upper 16
bits finds the bin that holds the threshold, a second one of the lower 16 bits finds the value:
two streaming passes, 512 KiB for each thread, whatever the number of entries.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from personality_vector.kernels import BINS
from personality_vector.parallel import in_parallel

Count = Callable[[int | None, Tensor], None]
"""Adds the magnitudes of a run of entries to a histogram; see
:func:`personality_vector.kernels.count_magnitudes`."""


def magnitude_threshold(runs: Sequence[Count], density: float) -> float:
    """Return the ``k``-th largest float32 magnitude, ``k = max(1, int(density * n))``.

    Keeping every entry with ``|x| >= threshold`` keeps the top ``density``; equal magnitudes at
    the threshold are all kept.

    Args:
        runs: Of the vector; each is counted twice, on all cores.
        density: In (0, 1]; 1 keeps everything and counts nothing.

    Raises:
        ValueError: ``density`` outside (0, 1].
    """
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density must be in (0, 1], got {density}")
    if density == 1.0:
        return 0.0
    upper = _histogram(runs, None)
    keep = max(1, int(density * int(upper.sum())))
    high, above = _bin_of(upper, keep)
    low, _ = _bin_of(_histogram(runs, high), keep - above)
    return float(torch.tensor((high << 16) | low, dtype=torch.int32).view(torch.float32))


def _histogram(runs: Sequence[Count], upper: int | None) -> Tensor:
    def count(run: Count) -> Tensor:
        counts = torch.zeros(BINS, dtype=torch.int64)
        run(upper, counts)
        return counts

    total = torch.zeros(BINS, dtype=torch.int64)
    for counts in in_parallel(count, runs):
        total += counts
    return total


def _bin_of(counts: Tensor, keep: int) -> tuple[int, int]:
    """Return the bin of the ``keep``-th largest entry, and how many entries lie above that bin."""
    from_top = counts.flip(0).cumsum(0)
    position = int((from_top < keep).sum())
    above = int(from_top[position - 1]) if position else 0
    return BINS - 1 - position, above
