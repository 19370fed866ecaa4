"""Alphas for wanted shifts: a linear model of what was measured, solved within bounds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy import ndarray

from personality_vector.numeric.statistics import Interval
from personality_vector.study.profile.recipe import ProfileRecipe
from personality_vector.traits import Trait

_OTHERS, _BARELY, _NEAR = 0.3, 1e-3, 0.05
"""Weight of traits without a target, by how much less it is where the target can be reached, and
the share of the target that may be missed there, by the model."""

_LEAST = 0.01
"""The share of what is missed that a further try has to promise to make up for."""

_DIGITS = 4
"""Of an alpha, so that a recipe that a person reads is exactly what was measured."""


class Linear(NamedTuple):
    """``shifts + slopes @ (alpha - alphas)``: how traits move near a point that was measured.

    Attributes:
        alphas: The point; 0 is the base.
        shifts: What was measured there, against the base.
        slopes: Change of each trait by one unit of each alpha: the cross-talk matrix.
    """

    alphas: Float[ndarray, " terms"]
    shifts: Float[ndarray, " traits"]
    slopes: Float[ndarray, "traits terms"]

    def at(self, alphas: Float[ndarray, " terms"]) -> Float[ndarray, " traits"]:
        """Return the shifts that it expects."""
        return np.asarray(self.shifts + self.slopes @ (alphas - self.alphas))

    def solved(
        self, wanted: Float[ndarray, " traits"], weights: Float[ndarray, " traits"], most: float
    ) -> Float[ndarray, " terms"]:
        """Return the alphas, none beyond ``most``, that come nearest to the wanted shifts.

        ``argmin |w * (at(alpha) - wanted)|^2``; of several, the shortest.
        """
        from scipy.optimize import lsq_linear

        left = wanted - self.shifts + self.slopes @ self.alphas
        found = lsq_linear(
            weights[:, None] * self.slopes, weights * left, (-most, most), method="bvls"
        )
        # Adding 0 turns -0 into 0.
        return np.asarray(np.round(found.x, _DIGITS) + 0.0)

    def after(
        self, alphas: Float[ndarray, " terms"], shifts: Float[ndarray, " traits"]
    ) -> "Linear":
        """Return the model about a point that was measured next.

        The slopes change as little as possible so that they lead from the last point to this one.

        Source:
            Broyden 1965, Mathematics of Computation 19:577, his first method.
        """
        step = alphas - self.alphas
        surprise = shifts - self.at(alphas)
        return Linear(alphas, shifts, self.slopes + np.outer(surprise, step) / (step @ step))


@dataclass(frozen=True, slots=True, eq=False)
class Aim:
    """What shifts are wanted, and how much each trait counts.

    Attributes:
        target: Trait to the shift.
        wanted: The same of every trait that is measured, 0 where there is no target.
        is_target: Which of them have one.
        is_told: Which slopes, by trait and term, can be told from 0.
        others: How much a trait without a target counts where the target is out of reach.
        most: The largest alpha.
    """

    target: Mapping[Trait, float]
    wanted: Float[ndarray, " traits"]
    is_target: Bool[ndarray, " traits"]
    is_told: Bool[ndarray, "traits terms"]
    others: float
    most: float

    @classmethod
    def of(cls, recipe: ProfileRecipe, slopes: Mapping[Trait, Sequence[Interval]]) -> "Aim":
        """Return that of a recipe, once the slopes are measured."""
        return cls(
            recipe.target,
            np.array([recipe.target.get(trait, 0.0) for trait in slopes]),
            np.array([trait in recipe.target for trait in slopes]),
            np.array([[not one.low <= 0.0 <= one.high for one in row] for row in slopes.values()]),
            _OTHERS if recipe.others == "keep" else 0.0,
            recipe.most,
        )

    def solved(self, model: Linear) -> Float[ndarray, " terms"]:
        """Return the best alphas by a model.

        Other traits first decide only between alphas that reach the target. Where none do, the
        others count in earnest, so that little is not bought dearly, and a slope that cannot be
        told from 0 counts as 0, so that noise drives no alpha to its bound.
        """
        alphas = model.solved(self.wanted, self._weights(_BARELY * self.others), self.most)
        if self.missed(model.at(alphas)) <= _NEAR * np.hypot.reduce(self.wanted):
            return alphas
        known = model._replace(slopes=np.where(self.is_told, model.slopes, 0.0))
        return known.solved(self.wanted, self._weights(self.others), self.most)

    def missed(self, shifts: Float[ndarray, " traits"]) -> float:
        """Return by how much shifts miss the target."""
        return float(np.hypot.reduce(self._weights(0.0) * (shifts - self.wanted)))

    def distance(self, shifts: Float[ndarray, " traits"]) -> float:
        """Return how far shifts are from what is wanted of all traits."""
        return float(np.hypot.reduce(self._weights(self.others) * (shifts - self.wanted)))

    def promises(
        self, expected: Float[ndarray, " traits"], tried: Sequence[Float[ndarray, " traits"]]
    ) -> bool:
        """Return whether shifts that are expected would be better than all that were measured."""
        return any(
            of(expected) < (1.0 - _LEAST) * min(map(of, tried), default=np.inf)
            for of in (self.missed, self.distance)
        )

    def _weights(self, others: float) -> Float[ndarray, " traits"]:
        return np.where(self.is_target, 1.0, others)
