"""Cosines between vectors, all of them from inner products that one pass over the data gives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from personality_vector.delta.delta import Delta
from personality_vector.delta.layers import grouped
from personality_vector.delta.sources import whole
from personality_vector.errors import (
    NonFiniteError,
    RecipeError,
    blame,
)
from personality_vector.progress import progress

_PART = 1 << 20
_NO_DIRECTION = 1e-7
"""Length, of unit vectors after centring, below which rounding alone decides the direction."""


@dataclass(frozen=True, slots=True, eq=False)
class Similarity:
    """Holds inner products of vectors by layer, and computes cosines from them.

    Attributes:
        labels: The labels of the ``n`` vectors.
        grams: Layer to the inner products of the vectors there, float64, from the embedding to the
            head; all layers together are the vectors.

    Raises:
        NonFiniteError: A vector is zero everywhere, or not finite.
    """

    labels: tuple[str, ...]
    grams: Mapping[str, Float64[Tensor, "n n"]]

    def __post_init__(self) -> None:
        for label, square in zip(self.labels, self.gram().diagonal().tolist(), strict=True):
            if not 0.0 < square < float("inf"):
                raise NonFiniteError(f"{label}: a vector of norm {square**0.5} has no direction")

    def gram(self, layer: str | None = None) -> Float64[Tensor, "n n"]:
        """Return the inner products in a layer, or over all of them."""
        if layer is not None:
            return self.grams[layer]
        start = torch.zeros(len(self.labels), len(self.labels), dtype=torch.float64)
        return sum(self.grams.values(), start)

    def cosine(self, layer: str | None = None, *, centred: bool = False) -> Float64[Tensor, "n n"]:
        """Return the cosine of the angle between every two vectors.

        Args:
            layer: A key of :attr:`grams`; by default the vectors are compared as a whole.
            centred: First remove what all have in common: scale each vector to length one, there
                where it is compared, and subtract the mean of them. Scaled first, since a cosine
                does not depend on lengths, and the mean of unequal ones is that of the longest.
                What is left sums to zero, so unrelated vectors now have ``-1 / (n - 1)``, not 0.

        Returns:
            NaN for a vector that is zero in this layer, which is also left out of the mean, or
            that is no longer than rounding once centred.

        Raises:
            RecipeError: ``centred``, of fewer than three vectors.
        """
        found = _cosine(self.gram(layer), 0.0)
        if not centred:
            return found
        if len(self.labels) < 3:
            raise RecipeError(
                "centring needs at least three vectors: two minus their mean are always opposite"
            )
        return _centred(found)


def similarity(deltas: Sequence[Delta]) -> Similarity:
    """Compare deltas, reading every tensor once, part by part.

    Memory: 16 MiB of each delta.

    Raises:
        BaseMismatchError: They are not all of one base.
        NonFiniteError: One of them is zero.
    """
    for delta in deltas[1:]:
        delta.require_same_base(deltas[0])
    groups = grouped({name for delta in deltas for name in delta.names})
    layers = {name: layer for layer, names in groups.items() for name in names}
    grams = {layer: torch.zeros(len(deltas), len(deltas), dtype=torch.float64) for layer in groups}
    for name in progress(list(layers), "similarity"):
        # A delta that does not name a tensor is zero there.
        holders = [index for index, delta in enumerate(deltas) if name in delta]
        count, where = whole(deltas[holders[0]].source, name).stop, torch.tensor(holders)
        for start in range(0, count, _PART):
            part = slice(start, min(start + _PART, count))
            with blame(tensor=name):
                rows = torch.stack([deltas[index].source.part(name, part) for index in holders])
            grams[layers[name]][where[:, None], where] += inner_products(rows)
    return Similarity(tuple(delta.label for delta in deltas), grams)


def inner_products(rows: Float[Tensor, "n entries"]) -> Float64[Tensor, "n n"]:
    """Return the inner product of every two rows, in float64, symmetric to the bit."""
    rows = rows.double()
    products = rows @ rows.T
    return (products + products.T) / 2


def _cosine(gram: Tensor, least: float) -> Tensor:
    """Divide by the lengths; NaN where one is not above ``least``."""
    lengths = gram.diagonal().clamp(min=0.0).sqrt()
    lengths = torch.where(lengths > least, lengths, torch.nan)
    return (gram / (lengths[:, None] * lengths)).clamp(-1.0, 1.0)


def _centred(cosine: Tensor) -> Tensor:
    """Return the cosines of unit vectors minus their mean, from their cosines."""
    found = torch.full_like(cosine, torch.nan)
    there = (~cosine.diagonal().isnan()).nonzero()[:, 0]
    if len(there) >= 3:
        among = cosine[there[:, None], there]
        mean = among.mean(0)
        centred = among - (mean[:, None] + mean) + among.mean()
        found[there[:, None], there] = _cosine(centred, _NO_DIRECTION)
    return found
