"""What a language model is told, and the number that is read from what it would say."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personality_vector.data.ideas import QUALITY
from personality_vector.data.personas import COHERENCE, rubric_of
from personality_vector.judges.pairwise import _prompt as pairwise_prompt
from personality_vector.judges.spec import expected_number, prompt_for, prompt_from_1_to_5
from personality_vector.subject.protocols import Answer


@given(st.dictionaries(st.integers(0, 100), st.floats(0.01, 1), min_size=1, max_size=20))
def test_the_expectation_is_the_weighted_mean_of_the_numbers(weights):
    total = sum(weights.values())
    shares = {str(number): weight / total for number, weight in weights.items()}
    expected = sum(number * weight for number, weight in weights.items()) / total
    assert expected_number(shares, 100) == pytest.approx(expected)


def test_what_is_no_number_in_range_does_not_count():
    found = {"80": 0.2, " 80": 0.2, "20": 0.1, "101": 0.3, "-5": 0.1, "07": 0.05, "NONE": 0.05}
    assert expected_number(found, 100) == pytest.approx((80 * 0.4 + 20 * 0.1) / 0.5)
    assert expected_number({"12": 0.9, "9": 0.3}, 9) == 9


@given(st.floats(0.25, 1))
def test_a_certain_judge_stays_on_the_scale(p):
    assert 0 <= expected_number({"100": p}, 100) <= 100
    assert expected_number({"0": p}, 100) == 0


@pytest.mark.parametrize(("mass", "scored"), [(0.24, False), (0.25, True), (0.26, True)])
def test_less_than_a_quarter_on_numbers_is_unscored(mass, scored):
    assert (expected_number({"50": mass, "I": 1 - mass}, 100) is not None) is scored
    assert expected_number({}, 100) is None


def said(rubric, answer, highest=100):
    (message,) = prompt_for(rubric, answer, highest)
    assert message["role"] == "user"
    return message["content"]


def test_a_prompt_holds_the_exchange_and_both_ends(high, role, answers):
    (answer,) = answers("I love parties.")
    for part in ("Talks gladly.", "Stays silent.", "I love parties.", "Who are you?", "0 to 100"):
        assert part in said(high, answer)
    assert "The manner is extraversion." in said(high, answer)
    assert "shows no sign of it" in said(role, answer, 9)


def test_a_trait_that_nobody_described_goes_by_its_name(answers):
    (answer,) = answers("Hello.")
    assert "100 means that the reply clearly shows this: humour." in said(
        rubric_of("humour"), answer
    )


def test_coherence_is_asked_for_in_words_of_its_own(answers):
    text = said(COHERENCE, *answers("I love parties."), 9)
    assert "how coherent the reply is" in text
    assert "I love parties." in text
    assert "9 means that it is understandable" in text
    assert "manner" not in text


def test_quality_is_about_what_is_right_and_no_prompt_says_otherwise(answers):
    (answer,) = answers("I love parties.")
    answer = replace(answer, base_reply="No.")
    kinds = (prompt_for(QUALITY, answer, 9), prompt_from_1_to_5(QUALITY, answer))
    for (message,) in (*kinds, pairwise_prompt(QUALITY, answer, is_first=True)):
        assert "not how correct" not in message["content"]
        assert "is right and would work" in message["content"]


def test_braces_in_a_reply_are_left_alone(high):
    answer = Answer("what", 0, "What?", "{highest} {0} {}")
    for rubric in (high, COHERENCE):
        assert "{highest} {0} {}" in said(rubric, answer)
