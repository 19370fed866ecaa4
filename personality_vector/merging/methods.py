"""The merge methods: a table of what is kept of each delta, and of how the kept parts are combined.

A row of :data:`METHODS` names a sparsification and a consensus; the keyword-only parameters of the
two are its options in a recipe. To add a method, add a row. Arithmetic is float64.
"""

from math import inf
from typing import Annotated, Literal

import torch

from personality_vector.errors import RecipeError
from personality_vector.merging.formula import (
    Entries,
    Kept,
    MergeMethod,
    Options,
    Range,
    Sparsification,
    Vote,
)
from personality_vector.merging.terms import Slice

Density = Annotated[float, Range("in (0, 1]", lambda value: 0.0 < value <= 1.0)]
Rate = Annotated[float, Range("in [0, 1)", lambda value: 0.0 <= value < 1.0 - 2.0**-24)]
Share = Annotated[float, Range("in [0, 1)", lambda value: 0.0 <= value < 1.0)]


def everything(_: Slice) -> Kept:
    """Keep the delta as it is."""
    return Kept()


def largest(
    s: Slice, *, density: Density = 0.2, trim: Literal["global", "per_tensor"] = "global"
) -> Kept:
    """Keep the top ``density`` of the whole vector, or of each tensor, by magnitude.

    Magnitudes are compared in float32; equal ones at the threshold are all kept. mergekit and PEFT
    trim per tensor. The whole vector of a LoRA adapter is that of the tensors it adapts.
    """
    return Kept(low=s.threshold(density, trim))


def at_random(_: Slice, *, drop_rate: Rate = 0.5) -> Kept:
    """Drop at random and rescale, so that the expectation over masks is the input.

    The default drop rate is that of the released script of Personality Vector (arXiv:2509.19727).
    """
    return Kept(drop_rate=drop_rate)


def by_rank(s: Slice, *, drop_rate: Rate = 0.5, epsilon: Share = 0.2) -> Kept:
    """Drop small entries more often than large ones, and rescale.

    Within a row of ``n`` entries, the one of rank ``r`` (0 the largest magnitude) is dropped with
    probability ``p_r = drop_rate - epsilon / 2 + epsilon * r / (n - 1)`` and otherwise divided by
    ``1 - p_r``.

    Deviations: the paper's ``r / n`` makes the mean of ``p_r`` a little less than ``drop_rate``.
    mergekit's ``epsilon`` is half of this one, and it rescales by the L1 norm of the tensor.
    """
    return Kept(drop_rate=lambda: drop_rates(s.delta, s.columns, drop_rate, epsilon))


def between(s: Slice, *, beta: Share = 0.85, gamma: Share = 0.01) -> Kept:
    """Leave out the smallest share ``beta`` and the largest share ``gamma`` of each tensor.

    At least one of the largest is left out, unless ``gamma`` is 0. mergekit's ``density`` is
    ``1 - beta - gamma``.
    """
    low = s.threshold(round(1.0 - beta, 12), "per_tensor")  # of 0.9 it is 0.1
    # Whatever the larger threshold keeps are the outliers.
    return Kept(low, max(low, s.threshold(gamma, "per_tensor")) if gamma else inf)


def agreeing(
    *,
    election: Literal["mass", "count"] = "mass",
    consensus: Literal["mean", "sum"] = "mean",
) -> Vote:
    """Elect a sign per entry and average (or add up) the terms that have it.

    ``s = sign(sum_i alpha_i T_i)``; ``tau = mean of alpha_i T_i over {i: sign(alpha_i T_i) = s}``.

    Deviations: alpha scales before the election, so a negative alpha votes for the opposite sign
    and a term with ``alpha = 0`` has no vote; where the sum is exactly zero nothing is added (the
    reference falls back to the majority over the whole vector). ``election: count`` gives every
    term one vote whatever its magnitude.
    """
    return Vote(consensus, by_count=election == "count")


def _window_fault(options: Options) -> str | None:
    middle, half = float(options["drop_rate"]), float(options["epsilon"]) / 2
    span = f"{middle - half:g} to {middle + half:g}"
    fits = half <= middle < 1.0 - half
    return None if fits else f"drop_rate -/+ epsilon / 2 must stay in [0, 1), here it is {span}"


def _shares_fault(options: Options) -> str | None:
    beta, gamma = options["beta"], options["gamma"]
    fits = float(beta) + float(gamma) < 1.0
    return None if fits else f"beta + gamma must be below 1, got {beta} + {gamma}"


AT_RANDOM = Sparsification(at_random, {"drop_rate": 0.0})

METHODS: dict[str, MergeMethod] = {
    row.name: row
    for row in (
        MergeMethod(
            "task_arithmetic",
            "Ilharco et al. 2022, arXiv:2212.04089",
            Sparsification(everything),
            Vote,
        ),
        MergeMethod(
            "ties",
            "Yadav et al. 2023, arXiv:2306.01708",
            Sparsification(largest, {"density": 1.0}),
            agreeing,
        ),
        MergeMethod("dare", "Yu et al. 2023, arXiv:2311.03099", AT_RANDOM, Vote),
        # The released code of DARE trims as well; mergekit's default is ``consensus: sum``.
        MergeMethod(
            "dare_ties",
            "Yu et al. 2023, arXiv:2311.03099, before TIES, arXiv:2306.01708",
            AT_RANDOM,
            agreeing,
        ),
        MergeMethod(
            "della",
            "Deep et al. 2024, arXiv:2406.11617",
            Sparsification(
                by_rank, {"drop_rate": 0.0, "epsilon": 0.0}, _window_fault, ranks_rows=True
            ),
            agreeing,
        ),
        MergeMethod(
            "breadcrumbs",
            "Davari and Belilovsky 2023, arXiv:2312.06795",
            Sparsification(between, {"beta": 0.0, "gamma": 0.0}, _shares_fault),
            Vote,
        ),
    )
}
"""The merge methods, by name."""


def find_method(name: str) -> MergeMethod:
    """Return the row of a method.

    Raises:
        RecipeError: No method has that name.
    """
    if name not in METHODS:
        raise RecipeError(f"unknown merge method {name!r}; known are {', '.join(METHODS)}")
    return METHODS[name]


def drop_rates(delta: Entries, columns: int, drop_rate: float, epsilon: float) -> Entries:
    """Return DELLA's probability of each entry, by the rank of its magnitude in its row."""
    if delta.numel() == 0:
        return delta
    rows = delta.abs().reshape(-1, columns)
    order = rows.argsort(dim=1, descending=True, stable=True)
    share = torch.linspace(-0.5, 0.5, columns, dtype=torch.float64, device=delta.device)
    share *= columns > 1  # the only entry of a row is in the middle
    rates = torch.empty_like(rows).scatter_(1, order, share.expand_as(rows))
    return (drop_rate + epsilon * rates).reshape(-1)
