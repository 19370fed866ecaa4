"""Instruments, personas and rubrics: their form, their two ends, and the ones that are shipped."""

import re
from collections import Counter
from pathlib import Path

import pytest

from personality_vector.data.adjectives import ADJECTIVES
from personality_vector.data.personas import (
    COHERENCE,
    Instrument,
    Item,
    Persona,
    evaluation_instrument,
    rubric_of,
)
from personality_vector.data.statements import normalised
from personality_vector.errors import RecipeError
from personality_vector.lab import lab_folder
from personality_vector.measures.instructions import CheckedInstrument
from personality_vector.recipes.reading import read_recipe
from personality_vector.subject.identity import digest_of
from personality_vector.subject.protocols import Rubric
from personality_vector.traits import BIG_FIVE, Pole

INSTRUMENTS = lab_folder() / "eval" / "instruments"
HEAD = 'name: two\nversion: "1"\nitems:\n'
FILES = sorted((lab_folder() / "training/steering/personas").glob("*.yaml"))
SHIPPED = {file.stem: read_recipe(file, Persona) for file in FILES}
ROLES = {name: persona for name, persona in SHIPPED.items() if persona.opposite is None}
TOPICS = {  # of each role: the stems of words that a question must not begin a word with
    "creative-professional": ["artist", "creativ", "design", "idea", "invent", "imagin", "poem"],
    "environmentalist": ["environ", "climat", "natur", "recycl", "wast", "forest", "animal"],
    "futurist": ["futur", "technolog", "trend", "tomorrow", "predict", "scenario", "robot"],
    "analytical-thinker": ["data", "logic", "analy", "evidenc", "statistic", "measur", "prove"],
    "empathetic-counselor": ["feel", "emotion", "sad", "stress", "worr", "lonel", "comfort"],
    "startup-founder": ["business", "compan", "customer", "market", "invest", "profit", "sell"],
}

CONTENT = {
    "name": "calm",
    "description": "Is calm.",
    "instructions": [{"positive": "Be calm.", "negative": "Be wild."}],
    "questions": {"extract": ["Who are you?"], "evaluate": ["How are you?"]},
}


def parsed(tmp_path, **keys):
    return Persona.parse({**CONTENT, **keys}, origin="p.yaml", folder=tmp_path)


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"questions": {"extract": ["Who?", "who? "]}}, "asked twice"),
        ({"questions": {"extract": ["Who?"], "evaluate": ["WHO?"]}}, "asked twice"),
        ({"questions": {"extract": []}}, "needs at least one"),
        ({"instructions": []}, "needs at least one"),
        ({"instructions": [{"positive": "a", "negative": " A"}]}, "same instruction"),
        ({"instructions": CONTENT["instructions"] * 2}, "given twice"),
        ({"pole": "neuroticism:low"}, "opposite is missing: say what neuroticism:high looks like"),
        ({"pole": "neuroticism"}, "is not a pole"),
        ({"descripton": "x"}, "did you mean 'description'"),
        ({"name": "Calm"}, "name"),
    ],
)
def test_a_persona_that_does_not_say_what_to_do_is_refused(tmp_path, keys, complaint):
    with pytest.raises(RecipeError, match=complaint):
        parsed(tmp_path, **keys)


def test_reversing_swaps_everything_and_twice_is_nothing(tmp_path):
    persona = parsed(tmp_path, pole="neuroticism:low", opposite="Is wild.", rubric="Be fair.")
    other = persona.at(persona.pole.opposite)
    assert (other.description, other.opposite) == ("Is wild.", "Is calm.")
    assert other.instructions[0].positive == "Be wild."
    assert other.pole == Pole("neuroticism", "high")
    assert (other.questions, other.rubric) == (persona.questions, "Be fair.")
    assert other.at(persona.pole) == persona != other


def test_a_pole_picks_the_end(tmp_path):
    persona = parsed(tmp_path, pole="neuroticism:low", opposite="Is wild.")
    assert persona.at(None) == persona.at(Pole("neuroticism", "low")) == persona
    assert persona.label == "neuroticism:low"
    with pytest.raises(RecipeError, match="pole openness:low: the persona calm is of neurot"):
        persona.at(Pole("openness", "low"))


def test_a_role_has_no_other_end(tmp_path):
    role = parsed(tmp_path)
    assert role.label == "calm"
    with pytest.raises(RecipeError, match="calm is not of a pole"):
        role.at(Pole("openness", "low"))


def test_the_other_questions_make_an_instrument(tmp_path):
    persona = parsed(tmp_path, pole="neuroticism:low", opposite="Is wild.")
    instrument = evaluation_instrument(persona)
    assert [item.text for item in instrument.items] == ["How are you?"]
    assert {item.trait for item in instrument.items} == {None}
    silent = parsed(tmp_path, questions={"extract": ["Who are you?"]})
    with pytest.raises(RecipeError, match="no questions for evaluation"):
        evaluation_instrument(silent)


def test_the_big_five_and_six_roles_are_shipped():
    assert set(BIG_FIVE) <= set(SHIPPED)
    assert len(ROLES) >= 6
    assert set(SHIPPED) == {*ROLES, *BIG_FIVE, "overconfident"}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_persona_has_the_papers_numbers(name):
    persona = SHIPPED[name]
    assert persona.name == name
    assert len(persona.instructions) == 5
    assert (len(persona.questions.extract), len(persona.questions.evaluate)) == (20, 20)
    sides = [text for p in persona.instructions for text in (p.positive, p.negative)]
    assert len(set(map(normalised, sides))) == 10


@pytest.mark.parametrize("trait", BIG_FIVE)
def test_a_trait_is_named_by_its_adjectives_on_the_right_side(trait):
    persona = SHIPPED[trait]
    assert persona.pole == Pole(trait, "high")
    named = 0
    for pair in persona.instructions:
        for text, end in ((pair.positive, 1), (pair.negative, 0)):
            match = re.fullmatch(r"You are very (.+), (.+) and (.+)\.", text)
            if match:
                words = {words[end] for words in ADJECTIVES[trait]}
                assert set(match.groups()) <= words, text
                named += 1
    assert named >= 6


@pytest.mark.parametrize("trait", BIG_FIVE)
def test_no_question_names_the_trait(trait):
    asked = " ".join([*SHIPPED[trait].questions.extract, *SHIPPED[trait].questions.evaluate])
    assert trait[:6] not in asked.lower()


@pytest.mark.parametrize("name", ROLES)
def test_a_role_is_set_against_nobody_and_asked_about_other_things(name):
    role = ROLES[name]
    assert role.opposite is None
    for pair in role.instructions:
        assert "assistant" in pair.negative or "questions" in pair.negative
        assert not set(name.split("-")) & set(pair.negative.lower().split())
    asked = " ".join([*role.questions.extract, *role.questions.evaluate]).lower()
    words = re.findall(r"\w+", asked)
    assert [word for word in words if word.startswith(tuple(TOPICS[name]))] == []


def test_roles_share_questions_and_neutral_prompts_so_that_they_differ_by_role_only():
    assert len({role.questions for role in ROLES.values()}) == 1
    negatives = {tuple(pair.negative for pair in role.instructions) for role in ROLES.values()}
    assert len(negatives) == 1


def written(folder: Path, text: str) -> Path:
    path = folder / "instrument.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_interview_asks_five_open_questions_of_each_trait_keyed_both_ways():
    items = read_recipe(INSTRUMENTS / "interview.yaml", Instrument).items
    assert Counter(item.trait for item in items) == dict.fromkeys(BIG_FIVE, 5)
    for trait in BIG_FIVE:
        assert {item.keyed for item in items if item.trait == trait} == {1, -1}
    assert all(("?" in item.text) or item.text.startswith("Tell me") for item in items)


def test_the_facet_interview_asks_two_open_questions_of_each_facet_one_keyed_each_way():
    items = read_recipe(INSTRUMENTS / "facets.yaml", Instrument).items
    asked = Counter((item.trait, item.facet) for item in items)
    assert set(asked.values()) == {2}
    assert Counter(trait for trait, _ in asked) == dict.fromkeys(BIG_FIVE, 6)
    assert {(item.facet, item.keyed) for item in items} == {
        (f, k) for _, f in asked for k in (1, -1)
    }
    assert all(item.id == f"{item.facet}-{'high' if item.keyed == 1 else 'low'}" for item in items)
    assert all(("?" in item.text) or item.text.startswith("Tell me") for item in items)


def test_an_item_without_a_facet_is_what_it_was_before_there_were_facets():
    """Runs of earlier versions resume."""
    known = {"id": "a", "text": "One", "trait": None, "keyed": 1}
    assert digest_of(Item(id="a", text="One")) == digest_of(["Item", known])


@pytest.mark.parametrize("name", ["about_yourself", "stories"])
def test_what_is_told_at_length_is_for_any_trait(name):
    items = read_recipe(INSTRUMENTS / f"{name}.yaml", Instrument).items
    assert {(item.trait, item.facet) for item in items} == {(None, None)}
    assert all(item.text.startswith("Tell ") for item in items)


def test_every_question_of_the_self_description_is_for_any_trait():
    instrument = read_recipe(INSTRUMENTS / "self_description.yaml", Instrument)
    assert instrument.system is None
    assert {item.trait for item in instrument.items} == {None}


@pytest.mark.parametrize("path", sorted(INSTRUMENTS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_instrument_is_valid_and_asks_nothing_twice(path):
    kind = CheckedInstrument if path.stem == "instructions" else Instrument
    texts = [item.text for item in read_recipe(path, kind).items]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    ("items", "complaint"),
    [
        ("  - {id: a, text: One}\n  - {id: a, text: Two}\n", "same id: a"),
        ("  - {id: a, text: One, trate: openness}\n", "did you mean 'trait'"),
        ("  - {id: a, text: One, keyed: 0}\n", "keyed"),
        ("  - {id: a, text: '  '}\n", "text"),
        ("  - {id: a}\n", "text"),
        ("  - {id: a, text: One, trait: Openness!}\n", "trait"),
        ("  []\n", "items"),
    ],
)
def test_a_wrong_instrument_is_refused_with_its_file_and_its_fault(tmp_path, items, complaint):
    path = written(tmp_path, HEAD + items)
    with pytest.raises(RecipeError, match=complaint) as refusal:
        read_recipe(path, Instrument)
    assert str(path) in str(refusal.value)


def test_an_item_is_keyed_to_the_high_end_and_open_to_any_trait_unless_it_says_otherwise(tmp_path):
    item = read_recipe(written(tmp_path, HEAD + "  - {id: a, text: One}\n"), Instrument).items[0]
    assert (item.trait, item.keyed) == (None, 1)


@pytest.mark.parametrize("trait", BIG_FIVE)
def test_the_big_five_are_described_as_their_personas(trait):
    rubric, persona = rubric_of(trait), SHIPPED[trait]
    assert (rubric.trait, rubric.pole) == (trait, Pole(trait, "high"))
    assert (rubric.description, rubric.opposite) == (persona.description, persona.opposite)
    assert rubric.note == (persona.rubric or "")


def test_another_trait_has_a_name_and_a_pole():
    assert rubric_of("humour") == Rubric("humour", pole=Pole("humour", "high"))
    assert rubric_of("coherence") is COHERENCE
    assert COHERENCE.pole is None


def test_the_upper_end_is_the_positive_side_of_a_persona():
    persona = SHIPPED["extraversion"].model_copy(update={"rubric": "Be fair."})
    high, low = persona.as_rubric(), persona.at(persona.pole.opposite).as_rubric()
    assert (high.trait, low.trait) == ("extraversion:high", "extraversion:low")
    assert (low.description, low.opposite) == (high.opposite, high.description)
    assert low.pole == high.pole.opposite
    assert high.note == low.note == "Be fair."
    role = SHIPPED["futurist"].as_rubric()
    assert (role.trait, role.opposite, role.note, role.pole) == ("futurist", None, "", None)
