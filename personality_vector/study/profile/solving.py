"""Alphas for wanted shifts: a linear model of what was measured, solved within bounds."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

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
