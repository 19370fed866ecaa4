"""Rollouts: which are asked, that they are the same again, and their file."""

import itertools
import json

import pytest

from personality_vector.data.rows import read_rows
from personality_vector.elicitation.elicit import _judged
from personality_vector.elicitation.recipe import RolloutSpec
from personality_vector.elicitation.rollouts import (
    Plan,
    Rollout,
    draw,
    paired,
    reused,
    to_jsonl,
)
from personality_vector.errors import DataError
from personality_vector.subject.chat import question
from personality_vector.subject.draws import sample_seed
from personality_vector.subject.protocols import Score
from personality_vector.subject.spec import Sampling
from personality_vector.subject.subject import Subject, generate_replies

SPEC = RolloutSpec(samples=2, max_new_tokens=5, batch_size=4)


class Watching:
    """Gives every answer the same score, and remembers it."""

    name, scale = "watching", (0.0, 100.0)

    def __init__(self):
        self.seen = []

    def identity(self):
        return "watching"

    def prepare(self, _base):
        return self

    def __call__(self, _rubric, answers):
        self.seen += answers
        return [Score(50.0) for _ in answers]


@pytest.fixture(scope="module")
def drawn(subject, persona):
    return draw(subject, Plan(persona, SPEC, 7))


def test_every_instruction_meets_every_question_on_both_sides(drawn, persona):
    pairs = paired(drawn)
    expected = list(itertools.product(range(2), range(2), range(3)))
    assert [pair.positive.id for pair in pairs] == [
        f"pair{i}-question{j}-sample{k}" for k, i, j in expected
    ]
    for pair, (_, i, j) in zip(pairs, expected, strict=True):
        instructions = persona.instructions[i]
        systems = [row.system for row in pair]
        assert systems == [instructions.positive, instructions.negative]
        assert {row.question for row in pair} == {persona.questions.extract[j]}
        assert all(row.reply for row in pair)


def test_the_replies_are_the_models_own_under_each_system_prompt(drawn, subject, persona):
    """Restate the batches: one seed for a sample, the same on both sides."""
    generation = Sampling(5, 1.0, 1.0, 4)
    for sample, side in itertools.product(range(2), ("positive", "negative")):
        chats = [
            [
                {"role": "system", "content": getattr(pair, side)},
                {"role": "user", "content": asked},
            ]
            for pair in persona.instructions
            for asked in persona.questions.extract
        ]
        replies = generate_replies(
            subject.model, subject.tokenizer, chats, generation, seed=sample_seed(7, sample)
        )
        found = [
            row.reply for row in drawn if row.side == side and row.id.endswith(f"sample{sample}")
        ]
        assert found == [reply.text for reply in replies]


def test_the_same_seed_draws_the_same_and_another_one_does_not(drawn, subject, persona):
    assert draw(subject, Plan(persona, SPEC, 7)) == drawn
    assert draw(subject, Plan(persona, SPEC, 8)) != drawn


def test_a_longer_run_begins_with_the_shorter_one(drawn, subject, persona):
    longer = draw(subject, Plan(persona, SPEC.model_copy(update={"samples": 3}), 7))
    assert longer[: len(drawn)] == drawn


def test_limits_take_the_first_pairs_and_questions(persona):
    spec = SPEC.model_copy(update={"pairs": 1, "questions": 2})
    rows = Plan(persona, spec).rows()
    assert {row.system for row in rows} == {"You are bold.", "You are timid."}
    assert {row.question for row in rows} == {"Who are you?", "And at night?"}
    assert {row.id for row in rows} <= {row.id for row in Plan(persona, SPEC).rows()}


def test_a_run_that_ended_early_goes_on_where_it_was(drawn, subject, persona):
    """Whatever was recorded, the replies are those of a run that was not interrupted."""
    seen = []
    plan = Plan(persona, SPEC, 7)
    draw(subject, plan, record=lambda rows: seen.append(list(rows)))
    assert [len(rows) for rows in seen] == [6, 12, 18, 24]
    mute = Subject(None, None)
    assert draw(mute, plan, earlier=drawn) == drawn
    for earlier in (seen[0], seen[2][:-1], []):
        assert draw(subject, plan, earlier=earlier) == drawn


def test_questions_for_evaluation_are_asked_once_for_each_pair(drawn, subject, persona):
    found = draw(subject, Plan(persona, SPEC, 7, evaluates=True))
    assert found[: len(drawn)] == drawn
    more = found[len(drawn) :]
    assert [row.question for row in more] == ["How?"] * 4
    assert not any(row.is_extract for row in more)
    assert all(row.is_extract for row in drawn)


def test_a_chat_is_what_the_model_read_and_its_reply(drawn):
    row = drawn[0]
    assert row.chat[:-1] == question("Who are you?", system="You are bold.")
    assert row.chat[-1] == {"role": "assistant", "content": row.reply}


def test_ratings_are_moved_from_the_scale_of_the_judge_to_percent(drawn):
    rated = drawn[0].rated(Score(2.0), Score(5.0), (1.0, 5.0))
    assert (rated.trait, rated.coherence, rated.reason) == (25.0, 100.0, "")
    rated = rated.rated(Score(33.3), Score(None, "no number"), (0.0, 100.0))
    assert (rated.trait, rated.coherence, rated.reason) == (33.3, None, "no number")
    both = rated.rated(Score(None, "empty"), Score(None, "empty"), (1.0, 5.0))
    assert both.reason == "empty"
    assert both.unrated() == drawn[0]


def test_a_judge_does_not_see_the_system_prompt(drawn, persona):
    judge = Watching()
    _judged(judge, persona, drawn)
    asked = [(row.question, row.reply) for row in drawn]
    assert [(answer.question, answer.reply) for answer in judge.seen] == 2 * asked
    assert not any(row.system in repr(judge.seen) for row in drawn)


def test_the_file_gives_back_what_was_written(drawn, tmp_path):
    file = tmp_path / "rollouts.jsonl"
    odd = drawn[0].model_copy(update={"reply": "line\nbreak \u2028 \N{SNOWMAN}", "trait": 0.1})
    file.write_text(to_jsonl([odd, *drawn[1:]]), encoding="utf-8")
    assert list(read_rows(file, Rollout).values()) == [odd, *drawn[1:]]


def test_replies_are_reused_in_any_order_if_they_answer_the_same(drawn, tmp_path, persona):
    file = tmp_path / "rollouts.jsonl"
    file.write_text(to_jsonl(drawn[::-1]), encoding="utf-8")
    one = SPEC.model_copy(update={"samples": 1})
    assert reused(file, Plan(persona, one)) == drawn[: len(drawn) // 2]
    with pytest.raises(DataError, match=r"lacks the positive reply pair0-question0-sample2"):
        reused(file, Plan(persona, SPEC.model_copy(update={"samples": 3})))
    with pytest.raises(DataError, match=r"pair0-question0-sample0 answers a system prompt"):
        reused(file, Plan(persona.at(persona.pole.opposite), SPEC))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: is not JSON"),
        ("{}", "line 2: the key 'id' is missing"),
        ('{"trait": 101}', "line 2: the key 'id'"),
        ('"text"', "line 2"),
    ],
)
def test_a_broken_line_is_named(drawn, tmp_path, line, complaint):
    file = tmp_path / "rollouts.jsonl"
    file.write_text(to_jsonl(drawn[:1]) + line + "\n", encoding="utf-8")
    with pytest.raises(DataError, match=complaint):
        read_rows(file, Rollout)
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "absent.jsonl", Rollout)


def test_a_rating_off_the_scale_is_refused(drawn, tmp_path):
    file = tmp_path / "rollouts.jsonl"
    file.write_text(json.dumps({**drawn[0].model_dump(), "trait": 101}), encoding="utf-8")
    with pytest.raises(DataError, match=r"line 1: trait: .*less than or equal to 100"):
        read_rows(file, Rollout)
