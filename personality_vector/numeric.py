"""Sums over large tensors in float64, a piece at a time."""

import math
from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

_PIECE = 1 << 22


def pieces(count: int) -> Iterator[slice]:
    """Yield slices that cover ``count`` entries, four million at a time.

    A whole tensor in float64, or as random bits, would take many times its memory.
    """
    for start in range(0, count, _PIECE):
        yield slice(start, min(start + _PIECE, count))


def dot(one: Float[Tensor, "*shape"], other: Float[Tensor, "*shape"]) -> float:
    """Return the inner product of two tensors of one shape, summed in float64."""
    a, b = one.reshape(-1), other.reshape(-1)
    parts = (a[part].double().dot(b[part].double()) for part in pieces(a.numel()))
    return math.fsum(float(part) for part in parts)


def norm(tensor: Float[Tensor, "*shape"]) -> float:
    """Return the Euclidean norm, summed in float64."""
    return math.sqrt(dot(tensor, tensor))
