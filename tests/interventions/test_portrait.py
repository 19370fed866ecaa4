"""Portraits: one for each pole, whole numbers only, and no trait named."""

import re

import pytest

from personality_vector.errors import RecipeError, TraitError
from personality_vector.interventions.portraits import Portrait
from personality_vector.subject.chat import question
from personality_vector.subject.subject import Subject
from personality_vector.traits import BIG_FIVE_POLES, Pole

HIGH = Pole("extraversion", "high")
STEMS = ("openness", "conscientious", "extraver", "introver", "agreeable", "neurotic")


@pytest.mark.parametrize("pole", BIG_FIVE_POLES, ids=str)
def test_a_portrait_addresses_the_model_and_names_no_trait(pole):
    text = Portrait(pole).sentence(1.0)
    assert 60 <= len(text.split()) <= 90
    assert len(re.findall(r"\b(?:you|your)\b", text, re.IGNORECASE)) >= 6
    assert not [stem for stem in STEMS if stem in text.lower()]
    assert text == " ".join(text.split())
    assert text.endswith(".")


def test_every_pole_has_its_own_and_below_zero_that_of_the_opposite():
    texts = {pole: Portrait(pole).sentence(1.0) for pole in BIG_FIVE_POLES}
    assert len(set(texts.values())) == 10
    for pole, text in texts.items():
        assert Portrait(pole.opposite).sentence(-1.0) == text


def test_it_becomes_the_system_message():
    with Portrait(HIGH).applied(Subject(None, None), 1.0) as asked:
        assert asked.edit(question("Hi"))[0] == {
            "role": "system",
            "content": Portrait(HIGH).sentence(1.0),
        }
        led = asked.edit(question("Hi", system="Be brief."))
    assert led[0]["content"] == f"{Portrait(HIGH).sentence(1.0)} Be brief."


@pytest.mark.parametrize("strength", [0.5, -2.0, 3.0])
def test_another_strength_is_refused(strength):
    with pytest.raises(RecipeError, match=r"has the strengths -1, 0 and 1, got"):
        Portrait(HIGH).sentence(strength)


def test_a_trait_without_portrait_is_refused():
    with pytest.raises(TraitError, match="creativity:high has no portrait"):
        Portrait(Pole("creativity", "high"))
