"""How well a number tells two groups apart: d' and the area under the ROC curve."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from personality_vector.errors import DataError

_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Separation:
    """How far a measured number lies higher in one group than in another.

    Attributes:
        d_prime: Difference of the means in units of the pooled standard deviation.
        auc: Chance that a member of the first group lies higher than one of the second; 0.5 is
            none at all.
        auc_low: Lower end of its 95 % confidence interval.
        auc_high: Upper end.
    """

    d_prime: float
    auc: float
    auc_low: float
    auc_high: float


def separation(higher: Sequence[float], lower: Sequence[float]) -> Separation:
    """Return how far ``higher`` lies above ``lower``; negative and below 0.5 if it lies below.

    ``d' = (mean_1 - mean_2) / sqrt((s_1^2 + s_2^2) / 2)``, infinite where neither group varies.

    Raises:
        DataError: A group has fewer than two members.

    Source:
        Variance of the area: DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837. The
        interval is normal on the scale of ``log(auc / (1 - auc))``, which keeps it inside (0, 1).
        Where the groups do not overlap at all there is no variance, and it has no width.
    """
    if min(len(higher), len(lower)) < 2:
        raise DataError(f"separation needs two of each, got {len(higher)} and {len(lower)}")
    above, below = np.asarray(higher, np.float64), np.asarray(lower, np.float64)
    wins = (above[:, None] > below) + 0.5 * (above[:, None] == below)
    auc = float(wins.mean())
    variance = sum(wins.mean(axis).var(ddof=1) / wins.shape[1 - axis] for axis in (0, 1))
    low, high = _interval(auc, math.sqrt(variance))
    return Separation(_d_prime(above, below), auc, low, high)


def _interval(auc: float, error: float) -> tuple[float, float]:
    if not 0.0 < auc < 1.0:
        return auc, auc
    odds, width = auc / (1.0 - auc), math.exp(_Z95 * error / (auc * (1.0 - auc)))
    return odds / (odds + width), odds / (odds + 1.0 / width)


def _d_prime(above: np.ndarray, below: np.ndarray) -> float:
    difference = float(above.mean() - below.mean())
    spread = math.sqrt((above.var(ddof=1) + below.var(ddof=1)) / 2.0)
    return difference / spread if spread else math.copysign(math.inf, difference)
