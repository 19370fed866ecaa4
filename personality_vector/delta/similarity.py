"""How alike deltas are."""

import math
from collections.abc import Sequence

import torch

from personality_vector.delta.delta import Delta
from personality_vector.errors import BaseMismatchError, NonFiniteError


def cosine_matrix(deltas: Sequence[Delta]) -> list[list[float]]:
    """Return the cosine between every two deltas, reading every tensor once.

    Memory: one float32 tensor of each delta.

    Raises:
        BaseMismatchError: They are not all of one base.
        NonFiniteError: One of them is zero.
    """
    for delta in deltas[1:]:
        if delta.base != deltas[0].base:
            raise BaseMismatchError(
                f"{delta.label} is of base {delta.base} and {deltas[0].label} of {deltas[0].base}; "
                "only deltas of one base have a cosine"
            )
    products = torch.zeros(len(deltas), len(deltas), dtype=torch.float64)
    for name in sorted({name for delta in deltas for name in delta.names}):
        products += _products(deltas, name)
    lengths = products.diagonal().sqrt().tolist()
    for delta, length in zip(deltas, lengths, strict=True):
        if length == 0.0 or not math.isfinite(length):
            raise NonFiniteError(f"{delta.label}: a delta of norm {length} has no direction")
    return [
        [float(product) / (a * b) for product, b in zip(row, lengths, strict=True)]
        for row, a in zip(products, lengths, strict=True)
    ]


def _products(deltas: Sequence[Delta], name: str) -> torch.Tensor:
    """Return the inner products between the deltas on one tensor; absent is zero."""
    rows = {i: delta[name].double() for i, delta in enumerate(deltas) if name in delta.names}
    products = torch.zeros(len(deltas), len(deltas), dtype=torch.float64)
    for i, one in rows.items():
        for j, other in rows.items():
            if j >= i:
                products[i, j] = products[j, i] = (one * other).sum()
    return products
