"""The nearest matrix of low rank, from the largest singular values, for matrices of any size."""

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from personality_vector.delta.sources import TensorSource, whole
from personality_vector.numeric.random import generator_for

_MOST_EXACT = 1 << 20
"""Entries of a matrix whose singular values are computed directly, in about a second."""

_OVERSAMPLING = 10  # Halko et al., section 4.2: 5 or 10 more than the rank
_ITERATIONS = 3
_BLOCK = 1 << 22


def truncated(
    source: TensorSource, name: str, rank: int
) -> tuple[Float32[Tensor, "rows rank"], Float32[Tensor, "rank columns"]]:
    """Return the factors of the nearest matrix of this rank; their product is it.

    Args:
        source: The source of the delta.
        name: Name of a matrix in it, with at least ``rank`` rows and columns.
        rank: Number of singular values to keep. Each factor carries the square root of them.

    Returns:
        float32; computed in float64. A matrix of up to 2**20 entries is decomposed directly
        (LAPACK), so that no matrix of this rank is nearer (Eckart and Young). A larger one is
        read in blocks of rows, eight times, and its largest singular values found in a random
        Krylov space; the start is fixed by the name of the tensor.

    Source:
        Musco and Musco 2015, arXiv:1504.05477, algorithm 2 (block Krylov iteration), which needs
        no gap between singular values; oversampled as by Halko et al. 2011, arXiv:0909.4061.
    """
    shape = source.shape(name)
    if math.prod(shape) <= _MOST_EXACT:
        matrix = source.part(name, whole(source, name)).reshape(shape)
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    else:
        basis = _range(source, name, min(rank + _OVERSAMPLING, *shape))
        inside = _transposed_times(source, name, basis).T
        left, values, right = torch.linalg.svd(inside, full_matrices=False)
        left = basis @ left
    scale = values[:rank].sqrt()
    return (left[:, :rank] * scale).float(), (scale[:, None] * right[:rank]).float()


def _range(source: TensorSource, name: str, width: int) -> Float64[Tensor, "rows width"]:
    """Return an orthonormal basis of approximately the space that the matrix stretches most."""
    generator = generator_for(0, f"low rank of {name}")
    start = torch.randn(source.shape(name)[1], width, dtype=torch.float64, generator=generator)
    spaces = [torch.linalg.qr(_times(source, name, start)).Q]
    for _ in range(_ITERATIONS):
        # Orthonormal after each half, or the small singular values drown in rounding.
        back = torch.linalg.qr(_transposed_times(source, name, spaces[-1])).Q
        spaces.append(torch.linalg.qr(_times(source, name, back)).Q)
    basis: Tensor = torch.linalg.qr(torch.cat(spaces, dim=1)).Q
    return basis


def _times(
    source: TensorSource, name: str, right: Float64[Tensor, "columns width"]
) -> Float64[Tensor, "rows width"]:
    return torch.cat([block @ right for _, block in _blocks(source, name)])


def _transposed_times(
    source: TensorSource, name: str, left: Float64[Tensor, "rows width"]
) -> Float64[Tensor, "columns width"]:
    total = torch.zeros(source.shape(name)[1], left.shape[1], dtype=torch.float64)
    for rows, block in _blocks(source, name):
        total += block.T @ left[rows]
    return total


def _blocks(source: TensorSource, name: str) -> Iterator[tuple[slice, Tensor]]:
    """Yield the matrix in blocks of whole rows, each with the range of its rows."""
    rows, columns = source.shape(name)
    height = max(1, _BLOCK // columns)
    for first in range(0, rows, height):
        last = min(first + height, rows)
        part = source.part(name, slice(first * columns, last * columns))
        yield slice(first, last), part.reshape(-1, columns)
