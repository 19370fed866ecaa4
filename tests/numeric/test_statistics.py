import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import bootstrap, pearsonr, spearmanr

from personality_vector.numeric.statistics import associations, bootstrapped, krippendorff

NONE = math.nan
# Four observers of twelve units: the example of Krippendorff 2011.
OBSERVED = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NONE, NONE, NONE],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NONE, 3],
    [NONE, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NONE],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NONE],
]


def test_alpha_is_that_of_the_published_example():
    assert krippendorff(np.array(OBSERVED)) == pytest.approx(0.849, abs=5e-4)


def disagreement(ratings):
    """Return alpha by its definition: sums over all pairs of values."""
    units = [[v for v in unit if not math.isnan(v)] for unit in np.array(ratings).T]
    units = [unit for unit in units if len(unit) > 1]
    values = [v for unit in units for v in unit]
    observed = sum(
        (a - b) ** 2 / (len(unit) - 1) for unit in units for a in unit for b in unit
    ) / len(values)
    expected = sum((a - b) ** 2 for a in values for b in values)
    return 1 - observed * len(values) * (len(values) - 1) / expected


RATING = st.one_of(st.just(NONE), st.integers(1, 5).map(float))


@given(st.lists(st.lists(RATING, min_size=6, max_size=6), min_size=2, max_size=4))
def test_alpha_is_its_definition(ratings):
    found = krippendorff(np.array(ratings))
    if math.isnan(found):
        units = [[v for v in u if not math.isnan(v)] for u in np.array(ratings).T]
        assert len({v for u in units if len(u) > 1 for v in u}) < 2
    else:
        assert found == pytest.approx(disagreement(ratings), abs=1e-9)


def test_the_interval_over_items_is_that_of_scipy():
    values = np.random.default_rng(1).normal(3, 1, 40)
    found = bootstrapped(values[:, None])
    expected = bootstrap((values,), np.mean, method="percentile", rng=0).confidence_interval
    assert found == pytest.approx((expected.low, expected.high), abs=0.05)


def test_seeds_are_drawn_as_well():
    """What differs by seed and not by item has no interval over items alone."""
    by_seed = np.tile(np.random.default_rng(2).normal(0, 1, 10), (50, 1))
    low, high = bootstrapped(by_seed)
    assert high - low > 0.5
    assert bootstrapped(by_seed[:, :1]) == pytest.approx((by_seed[0, 0],) * 2)


def test_missing_values_are_left_out_and_too_few_have_no_interval():
    values = np.array([[1.0, NONE], [3.0, 2.0], [NONE, NONE], [2.0, 2.0]])
    low, high = bootstrapped(values)
    assert 1 <= low < 2 < high <= 3
    assert bootstrapped(np.array([[1.0, NONE], [NONE, NONE]])) is None


@pytest.mark.parametrize("count", [3, 12, 60])
def test_correlations_and_their_intervals_are_those_of_scipy(count):
    rng = np.random.default_rng(3)
    one = rng.normal(size=count)
    other = one + rng.normal(size=count).round(1)
    found = associations(list(one), list(other))
    for name, statistic in (("pearson", pearsonr), ("spearman", spearmanr)):
        value, low, high = found[name]
        assert value == pytest.approx(statistic(one, other).statistic)
        assert -1 - 1e-12 <= low <= high <= 1 + 1e-12
        if count == 60:
            expected = bootstrap(
                (one, other),
                lambda a, b, of=statistic: of(a, b).statistic,
                method="percentile",
                paired=True,
                vectorized=False,
                n_resamples=2000,
                rng=0,
            ).confidence_interval
            assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.03)


def test_a_straight_line_correlates_perfectly_and_a_constant_not_at_all():
    line = [1.0, 2.0, 3.0, 4.0]
    for name in ("pearson", "spearman"):
        assert associations(line, [-3.0 * x for x in line])[name] == pytest.approx((-1.0,) * 3)
        assert all(map(math.isnan, associations(line, [0.1] * 4)[name]))
