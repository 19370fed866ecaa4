"""Fronts of effect against cost: what an intervention attains within a budget."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd

from personality_vector.study.comparison import Column, Comparison
from personality_vector.study.curves import power_of

Points = Sequence[tuple[float, float]]
"""Cost and effect of one intervention at several strengths."""


def area(points: Points, bound: float) -> float:
    """Return the mean, over budgets from 0 to ``bound``, of the largest effect within the budget.

    The area under the staircase of non-dominated points, over its width: the hypervolume of the
    front in common bounds, in the unit of the effect. The base, which costs and does nothing, is
    one of the points.

    >>> area([(1.0, 2.0)], bound=4.0)
    1.5
    """
    total, best, at = 0.0, 0.0, 0.0
    for cost, effect in sorted((max(cost, 0.0), effect) for cost, effect in points):
        if cost >= bound:
            break
        total, at = total + best * (cost - at), cost
        best = max(best, effect)
    return (total + best * (bound - at)) / bound


def is_dominated(point: tuple[float, float], others: Points) -> bool:
    """Return whether another point has at least the effect for at most the cost, and differs."""
    cost, effect = point
    return any(
        other[0] <= cost and other[1] >= effect and other != (cost, effect) for other in others
    )


def fronts(comparison: Comparison) -> pd.DataFrame:
    """Return one row per effect, cost and intervention: its area, and what others dominate.

    Columns: ``effect, cost, intervention, bound`` (the smallest of the largest costs of those that
    cost anything), ``area``, ``dominated`` (strengths at which another intervention has at least
    the effect for at most the cost). Costs are distances from the base, those of a divergence as
    square roots, which are near to proportional to a strength. A cost that no intervention has is
    left out. A grid with few strengths has a coarse staircase.
    """
    rows = []
    costs = [name for name, one in comparison.firsts.items() if one.better != "none"]
    for effect, cost in product(comparison.effects, costs):
        points = measured_points(comparison, effect, comparison.column(cost))
        power = power_of(comparison.costs[cost].unit, comparison.costs[cost].better)
        rooted = {
            label: {s: (max(c, 0.0) ** (1 / power), e) for s, (c, e) in own.items()}
            for label, own in points.items()
        }
        furthest = [max(c for c, _ in own.values()) for own in rooted.values()]
        bound = min((cost for cost in furthest if cost > 0), default=0.0)
        for label, own in rooted.items() if bound > 0 else ():
            others = [at for other in rooted if other != label for at in rooted[other].values()]
            lost = [f"{s:.3g}" for s, at in own.items() if is_dominated(at, others)]
            found = area(list(own.values()), bound)
            rows.append((effect, cost, label, bound, found, ", ".join(lost)))
    names = ["effect", "cost", "intervention", "bound", "area", "dominated"]
    return pd.DataFrame(rows, columns=names)


def measured_points(
    comparison: Comparison, effect: str, cost: Column
) -> dict[str, dict[float, tuple[float, float]]]:
    """Return, per intervention and strength, cost and effect, where that is towards the pole.

    The strengths are those of the grid and those that were matched.
    """
    moved = comparison.column(effect)
    found: dict[str, dict[float, tuple[float, float]]] = {}
    for label, strength in sorted(moved.cells.keys() & cost.cells.keys()):
        point = cost.value((label, strength)), moved.value((label, strength))
        if label in comparison.arms and point[1] > 0 and np.isfinite(point).all():
            found.setdefault(label, {})[strength] = point
    return found
