"""Adjectives: which words, which modifier, and where the sentence goes."""

import pytest

from personality_vector.data.adjectives import ADJECTIVES
from personality_vector.errors import RecipeError, TraitError
from personality_vector.interventions.portraits import Prompted
from personality_vector.subject.chat import question, render
from personality_vector.subject.models import load_tokenizer
from personality_vector.subject.subject import Subject
from personality_vector.traits import BIG_FIVE_POLES, Pole

FAMILIES = ("llama", "qwen2", "gemma2", "gpt_neox", "phi")
HIGH = Pole("extraversion", "high")


@pytest.mark.parametrize(
    ("strength", "sentence"),
    [
        (3.0, "You are very friendly, talkative and bold."),
        (2.0, "You are friendly, talkative and bold."),
        (1.0, "You are a bit friendly, talkative and bold."),
        (0.0, ""),
        (-1.0, "You are a bit unfriendly, silent and timid."),
        (-2.0, "You are unfriendly, silent and timid."),
        (-3.0, "You are very unfriendly, silent and timid."),
    ],
)
def test_strength_picks_the_modifier_and_its_sign_the_pole(strength, sentence):
    assert Prompted(HIGH).sentence(strength) == sentence
    assert Prompted(HIGH.opposite).sentence(-strength) == sentence


@pytest.mark.parametrize("pole", BIG_FIVE_POLES, ids=str)
def test_every_pole_has_three_adjectives_of_its_own_side(pole):
    said = Prompted(pole).sentence(2.0)
    words = said.removeprefix("You are ").removesuffix(".").replace(" and ", ", ").split(", ")
    own = [pair[pole.level == "high"] for pair in ADJECTIVES[pole.trait]]
    assert len(words) == 3
    assert set(words) <= set(own)
    assert pole.trait[:5] not in said


def drawn(seed, pole=HIGH, adjectives=5):
    """Return the words of a drawn prompt, which have their modifiers."""
    said = Prompted(pole, adjectives=adjectives, seed=seed).sentence(3.0)
    words = said.removeprefix("You are ").removesuffix(".").replace(" and very", ", very")
    return words.split(", ")


@pytest.mark.parametrize("pole", BIG_FIVE_POLES, ids=str)
def test_drawn_adjectives_are_five_of_the_pole_each_under_its_modifier(pole):
    own = {pair[pole.level == "high"] for pair in ADJECTIVES[pole.trait]}
    draws = [drawn(seed, pole) for seed in range(8)]
    for words in draws:
        assert all(word.startswith("very ") for word in words)
        bare = {word.removeprefix("very ") for word in words}
        assert len(bare) == len(words) == 5
        assert bare <= own
        assert not any(pole.trait[:5] in word for word in bare)
    assert len(set(map(tuple, draws))) == 8
    assert drawn(3, pole) == draws[3]


def test_the_same_seed_draws_opposite_words_for_the_opposite_pole():
    pairs = {f"very {low}": f"very {high}" for low, high in ADJECTIVES["extraversion"]}
    assert [pairs[word] for word in drawn(0, HIGH.opposite)] == drawn(0)
    for strength in (1.0, 2.0, 3.0):
        up = Prompted(HIGH, adjectives=5, seed=0).sentence(strength)
        assert up == Prompted(HIGH.opposite, adjectives=5, seed=0).sentence(-strength)


def test_every_adjective_is_drawn_by_some_seed_but_the_name_of_the_trait():
    seen = {word.removeprefix("very ") for seed in range(40) for word in drawn(seed)}
    assert seen == {high for _, high in ADJECTIVES["extraversion"]} - {"extraverted"}


@pytest.mark.parametrize(
    ("adjectives", "sentence"),
    [
        (1, "You are a bit friendly."),
        (2, "You are a bit friendly and talkative."),
        (5, "You are a bit friendly, talkative, bold, assertive and active."),
    ],
)
def test_without_a_seed_they_are_the_first_of_the_list(adjectives, sentence):
    assert Prompted(HIGH, adjectives=adjectives).sentence(1.0) == sentence


@pytest.mark.parametrize("adjectives", [0, 9])
def test_more_adjectives_than_there_are_is_refused(adjectives):
    with pytest.raises(RecipeError, match=f"has 8 adjectives .* use 1 to 8, not {adjectives}"):
        Prompted(HIGH, adjectives=adjectives)


@pytest.mark.parametrize("strength", [0.5, -2.5, 3.01, -4.0, 100.0])
def test_a_strength_between_two_steps_or_beyond_is_refused(strength):
    message = rf"^x: has the strengths -3, -2, -1, 0, 1, 2 and 3, got {strength:g}$"
    with (
        pytest.raises(RecipeError, match=message),
        Prompted(HIGH, "x").applied(Subject(None, None), strength),
    ):
        pytest.fail("the body must not run")


def test_a_trait_without_adjectives_is_refused():
    with pytest.raises(TraitError, match="creativity has no adjectives"):
        Prompted(Pole("creativity", "high"))


def test_the_sentence_becomes_or_precedes_the_system_message():
    bare, led = question("Who are you?"), question("Who are you?", system="Be brief.")
    with Prompted(HIGH).applied(Subject(None, None), 2.0) as asked:
        assert asked.edit(bare)[0] == {
            "role": "system",
            "content": "You are friendly, talkative and bold.",
        }
        assert asked.edit(led)[0]["content"] == "You are friendly, talkative and bold. Be brief."
        assert asked.edit(bare)[1:] == bare
        assert asked.edit(led)[1:] == led[1:]
    assert led == question("Who are you?", system="Be brief.")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompted_chat_can_be_rendered(pico, family):
    tokenizer = load_tokenizer(pico(family))
    with Prompted(HIGH).applied(Subject(None, None), -3.0) as asked:
        text = render(tokenizer, asked.edit(question("Hi")), reply_follows=True)
    assert text.startswith("<|system|>You are very unfriendly, silent and timid.<|end|><|user|>Hi")
