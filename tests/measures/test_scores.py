import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personality_vector.errors import DataError, NonFiniteError
from personality_vector.judges.scores import Score, summarise

RATINGS = st.lists(st.floats(1, 5), max_size=12)


def scores(values, unscored=0):
    missing = [Score(None, "mumble", "nothing to read")] * unscored
    return [*missing, *(Score(value, "text") for value in values)]


@given(RATINGS, st.integers(0, 5))
def test_the_unscored_are_counted_and_change_nothing_else(values, unscored):
    with_gaps, without = summarise(scores(values, unscored)), summarise(scores(values))
    assert (with_gaps.mean, with_gaps.sd, with_gaps.n) == (without.mean, without.sd, len(values))
    assert (with_gaps.unscored, without.unscored) == (unscored, 0)


def test_nothing_scored_has_no_mean():
    summary = summarise(scores([], unscored=3))
    assert (summary.mean, summary.sd, summary.n, summary.unscored) == (None, None, 0, 3)
    assert summary.standard_error is None


def test_the_spread_is_that_of_a_sample():
    summary = summarise(scores([1.0, 2.0, 4.5]))
    assert summary.mean == pytest.approx(2.5)
    assert summary.sd == pytest.approx(statistics.stdev([1.0, 2.0, 4.5]))
    assert summary.standard_error == pytest.approx(summary.sd / math.sqrt(3))


def test_one_score_has_a_mean_and_no_spread():
    summary = summarise(scores([4.0]))
    assert (summary.mean, summary.sd, summary.standard_error) == (4.0, None, None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_refused(value):
    with pytest.raises(NonFiniteError, match="text"):
        Score(value, "text")


@pytest.mark.parametrize("value", [0.99, 5.01])
def test_a_score_off_the_scale_is_refused(value):
    with pytest.raises(DataError, match=r"\[1, 5\]"):
        Score(value, "text")


def test_unscored_without_a_reason_is_refused():
    with pytest.raises(DataError, match="reason"):
        Score(None, "text")
