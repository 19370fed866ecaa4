"""Intervals of means and of correlations, and the agreement of raters."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy import ndarray

_RESAMPLES, _SEED = 2000, 0
Z95 = 1.959963984540054
"""Half the width of a normal 95 % interval, in standard errors."""


def of_share(share: float, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of ``n`` independent observations.

    Source:
        The score interval of Wilson 1927, which stays in [0, 1].

    >>> [round(end, 3) for end in of_share(0.25, 100)]
    [0.175, 0.343]
    """
    weight = Z95**2 / n
    middle = (share + weight / 2) / (1 + weight)
    half = math.sqrt(weight * share * (1 - share) + weight**2 / 4) / (1 + weight)
    return max(0.0, middle - half), min(1.0, middle + half)


class Interval(NamedTuple):
    """A number with its 95 % interval; NaN where it is undefined."""

    value: float
    low: float
    high: float


def bootstrapped(
    values: Float[ndarray, "items seeds *samples"],
    minus: Float[ndarray, "items seeds *samples"] | None = None,
) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean over items and seeds, each drawn again with replacement.

    The percentile interval of the bootstrap (Efron 1979); items and seeds are crossed, so both are
    drawn (Owen 2007, arXiv:0712.1111), and the samples of an item with a seed stay together. With
    ``minus`` it is the interval of the difference of two means in the same draws. NaN is left out.
    ``None`` if there are fewer than two values, or if most resamples have none.
    """
    rng = np.random.default_rng(_SEED)
    items, seeds = values.shape[:2]
    if np.isfinite(values).sum() < 2:
        return None
    rows = rng.multinomial(items, np.full(items, 1 / items), _RESAMPLES).astype(float)
    columns = rng.multinomial(seeds, np.full(seeds, 1 / seeds), _RESAMPLES).astype(float)
    means = _means(values, rows, columns)
    if minus is not None:
        means = means - _means(minus, rows, columns)
    means = means[np.isfinite(means)]
    if len(means) < _RESAMPLES / 2:
        return None
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def mean_and_interval(
    values: Sequence[float],
) -> tuple[float | None, float | None, float | None]:
    """Return the mean of values with the ends of its 95 % bootstrap interval, where there is one.

    >>> mean_and_interval([])
    (None, None, None)
    """
    if not values:
        return None, None, None
    low, high = bootstrapped(np.array(values, dtype=float)[:, None]) or (None, None)
    return math.fsum(values) / len(values), low, high


def _means(
    values: Float[ndarray, "items seeds *samples"],
    rows: Float[ndarray, "resamples items"],
    columns: Float[ndarray, "resamples seeds"],
) -> Float[ndarray, " resamples"]:
    """Return the mean of the known values in each resample; NaN where there are none."""
    samples = values.reshape(*values.shape[:2], -1)
    known = np.isfinite(samples)
    sums, counts = (
        np.einsum("ri,is,rs->r", rows, each.sum(-1), columns, optimize=True)
        for each in (np.where(known, samples, 0.0), known.astype(float))
    )
    return np.where(counts > 0, sums, np.nan) / np.where(counts > 0, counts, 1.0)


def mean_difference(
    values: Float[ndarray, "items seeds samples"],
    minus: Float[ndarray, "items seeds samples"] | None = None,
) -> Interval:
    """Return the mean over seeds of a mean over items, minus another one, with its 95 % interval.

    Over items and seeds by :func:`bootstrapped`; where there is a single item, over seeds by
    Student's t, unless all of them have the same value.
    """
    by_seed = _differences(values, minus)
    found = bootstrapped(values, minus) if len(values) > 1 else t_interval(by_seed)
    return Interval(mean_of_seeds(values, minus), *(found or (math.nan, math.nan)))


def mean_of_seeds(
    values: Float[ndarray, "items seeds samples"],
    minus: Float[ndarray, "items seeds samples"] | None = None,
) -> float:
    """Return the mean over seeds of a mean over items, minus another one."""
    by_seed = _differences(values, minus)
    return float(by_seed.mean()) if len(by_seed) else math.nan


def _differences(
    values: Float[ndarray, "items seeds samples"],
    minus: Float[ndarray, "items seeds samples"] | None,
) -> Float[ndarray, " n"]:
    """Return the difference of means of every seed that has both."""
    by_seed = _by_seed(values) - (0.0 if minus is None else _by_seed(minus))
    return by_seed[np.isfinite(by_seed)]


def _by_seed(values: Float[ndarray, "items seeds samples"]) -> Float[ndarray, " seeds"]:
    known = np.isfinite(values)
    counts = known.sum((0, 2))
    sums = np.where(known, values, 0.0).sum((0, 2))
    means: Float[ndarray, " seeds"] = np.where(counts > 0, sums, np.nan) / np.maximum(counts, 1)
    return means


def t_interval(values: Float[ndarray, " n"]) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean by Student's t; ``None`` if all values are the same."""
    from scipy import stats

    # Seeds that change nothing say nothing about how far other ones would.
    if len(set(values.tolist())) < 2:
        return None
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def associations(one: Sequence[float], other: Sequence[float]) -> dict[str, Interval]:
    """Return the correlations ``pearson`` and ``spearman`` of pairs, each with its 95 % interval.

    The percentile interval of the bootstrap (Efron 1979) over pairs. Resamples in which one side
    is constant have no correlation and are left out. Below about ten pairs the interval is rough,
    as few of the resamples differ.

    Args:
        one: One side; at least one number, and no NaN.
        other: The other side, in the same order.
    """
    from scipy.stats import rankdata

    pairs = np.array([one, other], dtype=float)
    rng, count = np.random.default_rng(_SEED), pairs.shape[1]
    drawn = pairs[:, rng.integers(count, size=(_RESAMPLES, count))]
    return {
        "pearson": interval(_pearson(pairs), _pearson(drawn)),
        "spearman": interval(
            *(_pearson(rankdata(values, axis=-1)) for values in (pairs, drawn)),
        ),
    }


def interval(value: float | Float[ndarray, ""], resampled: Float[ndarray, " n"]) -> Interval:
    """Return a number with the percentile interval of its resamples; NaN among them is left out."""
    known = resampled[np.isfinite(resampled)]
    if not np.isfinite(value) or not len(known):
        return Interval(float(value), math.nan, math.nan)
    low, high = np.quantile(known, [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


def _pearson(pairs: Float[ndarray, "2 *resamples n"]) -> Float[ndarray, "*resamples"]:
    """Return the correlation over the last axis; NaN where a side is constant."""
    # Constant by its values: about a mean that was rounded, the squares need not be 0.
    is_constant = (pairs == pairs[..., :1]).all(-1).any(0)
    one, other = pairs - pairs.mean(-1, keepdims=True)
    norms = np.sqrt((one**2).sum(-1) * (other**2).sum(-1))
    return np.where(is_constant, np.nan, (one * other).sum(-1) / np.where(is_constant, 1, norms))


def moments(
    x: Float[ndarray, " points"], y: Float[ndarray, " points"]
) -> Float[ndarray, "points 6"]:
    """Return ``1, x, y, x^2, y^2, xy`` of each point, whose sums give correlations."""
    return np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=-1)


def resampled_correlations(
    sums: Float[ndarray, "series clusters 6"],
) -> Float[ndarray, "series resamples"]:
    """Return Pearson's r of each series: that of the data first, then those of the bootstrap.

    Whole clusters are drawn again, such as all points of an item (Efron 1979).

    Args:
        sums: Of each cluster those of :func:`moments`.
    """
    count = sums.shape[1]
    rng = np.random.default_rng(_SEED)
    drawn = rng.multinomial(count, np.full(count, 1 / count), _RESAMPLES)
    weights = np.vstack([np.ones((1, count)), drawn])
    n, x, y, xx, yy, xy = np.moveaxis(np.einsum("rc,tcs->trs", weights, sums), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = np.maximum(n * xx - x * x, 0.0) * np.maximum(n * yy - y * y, 0.0)
        return np.asarray((n * xy - x * y) / np.sqrt(spread))


def krippendorff(ratings: Float[ndarray, "raters units"]) -> float:
    """Return Krippendorff's alpha for interval data; NaN where ratings are missing or all alike.

    ``1 - observed / expected`` disagreement, by squared differences: within units, and among all
    values that can be paired. 1 is perfect agreement and 0 what chance gives.

    Source:
        Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".
    """
    columns = [column[np.isfinite(column)] for column in ratings.T]
    paired = [column for column in columns if len(column) > 1]
    if not paired:
        return float("nan")
    values = np.concatenate(paired)
    # The sum of squared differences over ordered pairs is 2 n times the sum of squares about the
    # mean.
    within = sum(2 * len(one) * one.var() * len(one) / (len(one) - 1) for one in paired)
    among = 2 * len(values) * values.var() * len(values) / (len(values) - 1)
    return float(1 - within / among) if among else float("nan")


def correlation(strengths: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Return Spearman, Pearson with its 95 % interval, and the slope; NaN where undefined."""
    from scipy import stats

    if len(set(strengths)) < 3 or len(set(values)) < 2:
        return dict.fromkeys(["spearman", "pearson", "ci_low", "ci_high", "slope"], math.nan)
    pearson = stats.pearsonr(strengths, values)
    interval = pearson.confidence_interval(0.95) if len(values) > 3 else (math.nan,) * 2
    return {
        "spearman": float(stats.spearmanr(strengths, values).statistic),
        "pearson": float(pearson.statistic),
        "ci_low": float(interval[0]),
        "ci_high": float(interval[1]),
        "slope": float(stats.linregress(strengths, values).slope),
    }
