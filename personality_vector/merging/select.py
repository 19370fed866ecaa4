"""The exact magnitude threshold of a top fraction, without sorting, in bounded memory.

The bit pattern of a non-negative float32 orders as the number does. A histogram of the upper 16
bits finds the bin that holds the threshold, a second one of the lower 16 bits finds the value:
two streaming passes, 512 KiB, whatever the number of entries.
"""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

_BINS = 1 << 16
Stream = Callable[[], Iterable[Tensor]]


def magnitude_threshold(stream: Stream, density: float) -> float:
    """Return the ``k``-th largest magnitude of a vector, ``k = max(1, int(density * n))``.

    Keeping every entry with ``|x| >= threshold`` keeps the top ``density`` of the vector;
    equal magnitudes at the threshold are all kept.

    Args:
        stream: Called twice; each call yields the float32 pieces of the vector.
        density: In (0, 1]; 1 keeps everything and reads nothing.

    Raises:
        ValueError: ``density`` outside (0, 1].
    """
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density must be in (0, 1], got {density}")
    if density == 1.0:
        return 0.0
    upper = _histogram(stream, lambda bits: bits >> 16)
    keep = max(1, int(density * int(upper.sum())))
    high, above = _bin_of(upper, keep)
    lower = _histogram(stream, lambda bits: bits[(bits >> 16) == high] & (_BINS - 1))
    low, _ = _bin_of(lower, keep - above)
    return float(torch.tensor((high << 16) | low, dtype=torch.int32).view(torch.float32))


def keep_at_least(delta: Float[Tensor, "*shape"], threshold: float) -> Float[Tensor, "*shape"]:
    """Return ``delta`` with every entry of smaller magnitude than ``threshold`` set to zero."""
    return torch.where(delta.abs() >= threshold, delta, torch.zeros_like(delta))


def _histogram(stream: Stream, digit: Callable[[Tensor], Tensor]) -> Tensor:
    counts = torch.zeros(_BINS, dtype=torch.int64)
    for piece in stream():
        bits = piece.reshape(-1).abs().view(torch.int32)
        counts += torch.bincount(digit(bits), minlength=_BINS)
    return counts


def _bin_of(counts: Tensor, keep: int) -> tuple[int, int]:
    """Return the bin of the ``keep``-th largest entry, and how many entries lie above that bin."""
    from_top = counts.flip(0).cumsum(0)
    position = int((from_top < keep).sum())
    above = int(from_top[position - 1]) if position else 0
    return _BINS - 1 - position, above
