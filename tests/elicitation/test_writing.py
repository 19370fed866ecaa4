"""Writing a persona: what a generator is asked, and what of its answer is accepted."""

import json

import pytest

from personality_vector.elicitation.writing import (
    Draft,
    Twin,
    endpoint_generator,
    local_generator,
    write_persona,
    write_twins,
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


class Answers:
    """A generator that gives one reply after the other."""

    def __init__(self, *replies):
        self.replies = iter(replies)
        self.asked = []

    def __call__(self, chat, schema, /):
        assert schema == Twin.model_json_schema()
        self.asked.append(chat[-1]["content"])
        reply = next(self.replies)
        if isinstance(reply, Exception):
            raise reply
        return reply


PROMPTS = [f"Write a story about a dream of the number {n}." for n in range(7)]


def test_usable_twins_are_paired_with_their_prompts_and_the_others_are_told_with_their_reason():
    generator = Answers(
        ' "Write a story\nabout counting." ',
        '{"prompt": "Write about a sum."}',
        "  ",
        PROMPTS[3].upper(),
        "so " * 29,
        '{"twin": "Write about a sum."}',
        "so " * 28,
    )
    found = write_twins(PROMPTS, generator)
    assert [pair.uncreative for pair in found.pairs] == [
        "Write a story about counting.",
        "Write about a sum.",
        ("so " * 28).strip(),
    ]
    assert [pair.creative for pair in found.pairs] == [PROMPTS[n] for n in (0, 1, 6)]
    assert found.unusable == {
        PROMPTS[2]: "it is empty",
        PROMPTS[3]: "it is the prompt itself",
        PROMPTS[4]: "it has 29 words and may have 28",
        PROMPTS[5]: "it is JSON of another form",
    }
    assert all(prompt in asked for prompt, asked in zip(PROMPTS, generator.asked, strict=True))


def test_a_reply_that_cannot_be_had_takes_no_other_with_it():
    answers = Answers("Write about a sum.", DataError("the server refused"), "Write a list.")
    found = write_twins(PROMPTS[:3], answers)
    assert len(found.pairs) == 2
    assert found.unusable == {PROMPTS[1]: "the server refused"}


def test_without_a_usable_twin_or_with_a_prompt_twice_there_are_no_pairs():
    with pytest.raises(DataError, match=r"no twin is usable, that of 'Write a story.* it is empty"):
        write_twins(PROMPTS[:2], Answers("", ""))
    with pytest.raises(DataError, match=r"'A story\.' is given twice"):
        write_twins(["A story.", " a  STORY."], Answers())
