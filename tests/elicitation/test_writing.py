"""Writing a persona: what a generator is asked, and what of its answer is accepted."""

import json

import pytest

from personality_vector.elicitation.writing import (
    Draft,
    endpoint_generator,
    local_generator,
    write_persona,
)
from personality_vector.errors import DataError, RecipeError
from personality_vector.subject.endpoint import Endpoint
from personality_vector.subject.spec import Sampling
from tests.fake_endpoint import said, serving

WRITTEN = {
    "instructions": [
        {"positive": f"Be calm, {i}.", "negative": f"Be wild, {i}."} for i in range(5)
    ],
    "questions": [f"What about number {i}?" for i in range(40)],
}


class Says:
    """A generator that always writes the same, and remembers what it was asked."""

    def __init__(self, text):
        self.text = text

    def __call__(self, chat, schema, /):
        self.chat, self.schema = chat, schema
        return self.text


def changed(**keys):
    return json.dumps({**WRITTEN, **keys})


def test_what_was_written_becomes_a_persona():
    generator = Says(json.dumps(WRITTEN))
    persona = write_persona("stoicism", "Takes things calmly.", generator)
    assert (persona.name, persona.pole, persona.opposite) == ("stoicism", None, None)
    assert [pair.model_dump() for pair in persona.instructions] == WRITTEN["instructions"]
    assert persona.questions.extract == tuple(WRITTEN["questions"][::2])
    assert persona.questions.evaluate == tuple(WRITTEN["questions"][1::2])
    (message,) = generator.chat
    assert message["role"] == "user"
    for part in ("stoicism", "Takes things calmly.", "5 pairs", "40 different", "neutral"):
        assert part in message["content"]
    assert "{" in message["content"]
    assert "{{" not in message["content"]


def test_a_pole_has_its_opposite_as_the_other_side():
    generator = Says(json.dumps(WRITTEN))
    persona = write_persona(
        "calm", "Is calm.", generator, opposite="Is wild.", pole="neuroticism:low"
    )
    assert str(persona.pole) == "neuroticism:low"
    assert persona.at(persona.pole.opposite).instructions[0].positive == "Be wild, 0."
    assert "Is wild." in generator.chat[0]["content"]
    assert "neutral" not in generator.chat[0]["content"]


@pytest.mark.parametrize(
    "text",
    [
        "Here it is:\n```json\n{}\n```\nGood luck!",
        "{}",
        "<think>\nfive pairs\n</think>\n\n{}",
    ],
)
def test_words_around_the_object_are_passed_over(text):
    generator = Says(text.replace("{}", json.dumps(WRITTEN, indent=1)))
    assert len(write_persona("calm", "Is calm.", generator).questions.extract) == 20


def test_more_than_was_asked_for_is_left_out():
    extra = changed(questions=[*WRITTEN["questions"], "One more?"])
    persona = write_persona("calm", "Is calm.", Says(extra))
    assert len(persona.questions.extract) + len(persona.questions.evaluate) == 40


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("I would rather not.", "wrote 'I would rather not.' instead of a JSON object"),
        (json.dumps(WRITTEN)[:-300] + "}", "broken JSON"),
        (changed(questions=WRITTEN["questions"][:39]), "39 questions, 40 are needed"),
        (changed(instructions=WRITTEN["instructions"][:2]), "2 instruction pairs, 5 are needed"),
        (
            changed(instructions=[{"positive": "a"}] * 5),
            r"key 'instructions\.0\.negative' is missing",
        ),
        ('{"questions": []}', "the key 'instructions' is missing"),
        (changed(title="x"), "unknown key 'title'"),
        (changed(questions=["Same?", " same? ", *WRITTEN["questions"][:38]]), "asked twice"),
        (changed(questions=["  ", *WRITTEN["questions"][:39]]), r"questions\.extract\.0"),
        (changed(instructions=[{"positive": "a", "negative": "A"}] * 5), "same instruction"),
        (changed(instructions=WRITTEN["instructions"][:1] * 5), "given twice"),
    ],
)
def test_what_does_not_serve_is_refused_with_what_is_missing(text, complaint):
    with pytest.raises(DataError, match=complaint):
        write_persona("calm", "Is calm.", Says(text))


@pytest.mark.parametrize(
    ("name", "description", "pole", "complaint"),
    [
        ("Calm Man", "Is calm.", None, "name: a name is lower-case letters, digits, - and _"),
        ("Stoic", "Is calm.", None, "such as stoic-sailor, not 'Stoic'$"),
        ("9lives", "Is calm.", None, "it begins with a letter"),
        ("calm", " ", None, "description"),
        ("calm", "Is calm.", "neuroticism", "is not a pole"),
        ("calm", "Is calm.", "neuroticism:low", "opposite is missing"),
    ],
)
def test_a_wrong_wish_is_refused_before_anybody_is_asked(name, description, pole, complaint):
    with pytest.raises(RecipeError, match=complaint):
        write_persona(name, description, _never, pole=pole)


def _never(_chat, _schema, /):
    raise AssertionError("was asked")


def test_an_endpoint_is_held_to_the_schema():
    with serving(lambda _: said(json.dumps(WRITTEN))) as fake:
        generator = endpoint_generator(Endpoint("writer", fake.base_url))
        persona = write_persona("calm", "Is calm.", generator)
    form = fake.requests[0]["response_format"]["json_schema"]
    assert form["schema"] == Draft.model_json_schema()
    assert form["schema"]["required"] == ["instructions", "questions"]
    assert form["schema"]["additionalProperties"] is False
    assert persona.instructions[4].positive == "Be calm, 4."


def test_a_local_model_that_babbles_is_refused(subject, monkeypatch):
    monkeypatch.setattr(subject.tokenizer, "most_tokens", None)  # the request is longer
    generator = local_generator(subject, Sampling(max_new_tokens=8))
    with pytest.raises(DataError, match="the generator wrote"):
        write_persona("calm", "Is calm.", generator)
