"""Neurons as a table that can be compared."""

from collections.abc import Mapping

from personality_vector.interventions.neurons.chosen import Neurons


def listed(side: Mapping[int, Neurons]) -> dict[tuple[int, int], tuple[float, float]]:
    """Return ``(layer, index)`` to ``(difference, a95)``."""
    return {
        (layer, int(index)): (float(difference), float(a95))
        for layer, found in side.items()
        for index, difference, a95 in zip(found.index, found.difference, found.a95, strict=True)
    }
