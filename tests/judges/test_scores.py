"""What is refused of any judge, whoever wrote it."""

import math

import pytest

from personality_vector.errors import DataError, NonFiniteError
from personality_vector.subject.protocols import Judge, Score, rated


class Says:
    """A judge that always says the same."""

    name, scale = "says", (1.0, 5.0)

    def __init__(self, *values):
        self.values = values

    def identity(self):
        return "says"

    def prepare(self, _base, /):
        return self

    def __call__(self, _rubric, _answers, /):
        return [Score(value, "not readable") for value in self.values]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_no_number_is_refused(value):
    with pytest.raises(NonFiniteError, match="a judge returned"):
        Score(value)


def test_unscored_without_a_reason_is_refused():
    with pytest.raises(DataError, match="reason"):
        Score(None)


@pytest.mark.parametrize("value", [0.99, 5.01])
def test_a_score_off_the_scale_of_its_judge_is_refused(value, high, answers):
    with pytest.raises(DataError, match=r"says: a score must be in \[1, 5\], got"):
        rated(Says(3.0, value), high, answers("a", "b"))


def test_the_ends_of_the_scale_and_the_unscored_pass(high, answers):
    judge = Says(1.0, None, 5.0)
    assert isinstance(judge, Judge)
    assert [score.value for score in rated(judge, high, answers("a", "", "c"))] == [1.0, None, 5.0]


def test_a_score_for_each_answer_is_needed(high, answers):
    with pytest.raises(DataError, match="says: returned 1 scores for 2 answers"):
        rated(Says(3.0), high, answers("a", "b"))
