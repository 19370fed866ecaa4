import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personality_vector.judges.summary import summarise

VALUES = st.lists(st.floats(0, 100), max_size=12)


@given(VALUES, st.integers(0, 5))
def test_the_unscored_are_counted_and_change_nothing_else(values, unscored):
    with_gaps, without = summarise([*[None] * unscored, *values]), summarise(values)
    assert (with_gaps.mean, with_gaps.sd, with_gaps.n) == (without.mean, without.sd, len(values))
    assert (with_gaps.unscored, without.unscored) == (unscored, 0)


def test_nothing_scored_has_no_mean():
    summary = summarise(iter([None] * 3))
    assert (summary.mean, summary.sd, summary.n, summary.unscored) == (None, None, 0, 3)
    assert summary.standard_error is None


def test_the_spread_is_that_of_a_sample():
    summary = summarise([1.0, 2.0, 4.5])
    assert summary.mean == pytest.approx(2.5)
    assert summary.sd == pytest.approx(statistics.stdev([1.0, 2.0, 4.5]))
    assert summary.standard_error == pytest.approx(summary.sd / math.sqrt(3))


def test_one_score_has_a_mean_and_no_spread():
    summary = summarise([4.0])
    assert (summary.mean, summary.sd, summary.standard_error) == (4.0, None, None)
