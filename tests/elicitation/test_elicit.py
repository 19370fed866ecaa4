"""From a persona to chats and a vector: what is kept is what is read, and it is recorded."""

import json

import pytest
import torch

from personality_vector.data.personas import COHERENCE
from personality_vector.elicitation.elicit import elicit, open_judge, read_persona
from personality_vector.elicitation.extract import extract_persona
from personality_vector.elicitation.rollouts import to_jsonl
from personality_vector.errors import DataError, ModelError, RecipeError
from personality_vector.steering import SteeringVector
from personality_vector.subject.protocols import Score
from personality_vector.subject.subject import Subject
from tests.fake_endpoint import likely, serving


class EveryThird:
    """Rates by the place of the reply: every third pair is unclear, the first is unscored."""

    name, scale = "every third", (0.0, 10.0)

    def identity(self):
        return self.name

    def prepare(self, _base, /):
        return self

    def __call__(self, rubric, answers, /):
        half = len(answers) // 4  # a sample has two sides
        return [self.rate(rubric, place, half) for place in range(len(answers))]

    def rate(self, rubric, place, half):
        number, is_positive = place % half, place // half % 2 == 0
        if number == 0:
            return Score(None, "?")
        if rubric == COHERENCE:
            return Score(9.9)
        return Score(9.0 if is_positive else (6.0 if number % 3 == 2 else 0.5))


JUDGE = EveryThird()


def test_what_is_kept_comes_in_pairs_with_the_system_prompts(steer, subject, persona):
    elicited = elicit(steer(), subject, JUDGE)
    assert elicited.report.dropped == {
        "empty": 0, "unscored": 2, "positive_trait": 0, "negative_trait": 4, "coherence": 0
    }  # fmt: skip
    assert (
        len(elicited.kept("positive"))
        == len(elicited.kept("negative"))
        == elicited.report.kept
        == 6
    )
    opposite = {pair.positive: pair.negative for pair in persona.instructions}
    for one, other in zip(elicited.kept("positive"), elicited.kept("negative"), strict=True):
        assert [message["role"] for message in one] == ["system", "user", "assistant"]
        assert other[0]["content"] == opposite[one[0]["content"]]
        assert other[1] == one[1]
    assert elicited.judge == "every third"


def test_nobody_judging_keeps_all(steer, subject):
    elicited = elicit(steer(), subject)
    assert elicited.report.kept == elicited.report.total == 12
    assert elicited.judge == "none"
    assert all(row.kept and row.trait is None for row in elicited.rollouts)


def test_a_low_pole_swaps_the_sides(steer, subject):
    high, low = (elicit(steer(pole=f"extraversion:{level}"), subject) for level in ("high", "low"))
    assert (high.kept("positive"), high.kept("negative")) == (
        low.kept("negative"),
        low.kept("positive"),
    )
    assert str(low.persona.pole) == "extraversion:low"
    with pytest.raises(RecipeError, match="persona extraversion is of extraversion:high"):
        read_persona(steer(pole="openness:high"))


def test_everything_is_recorded_when_it_is_there(steer, subject):
    seen = []
    elicited = elicit(steer(), subject, JUDGE, record=seen.append)
    *parts, drawn, rated, done = seen
    assert len(parts[-1]) == len(drawn) == 24
    assert all(row.reply and row.trait is None for row in drawn)
    assert any(row.trait == 90.0 and not row.kept for row in rated)
    assert tuple(done) == elicited.rollouts
    strict = steer(judge="classifier", thresholds={"coherence": 100.0})
    with pytest.raises(DataError, match="no pair is left"):
        elicit(strict, subject, JUDGE, record=seen.append)
    assert {row.rule for row in seen[-1]} == {"unscored", "negative_trait", "coherence"}


def test_replies_and_ratings_of_an_earlier_run_are_used_again(steer, subject, tmp_path):
    file = tmp_path / "rollouts.jsonl"
    first = elicit(steer(), subject, JUDGE)
    file.write_text(to_jsonl(first.rollouts), encoding="utf-8")
    reuse = {"reuse": str(file)}
    mute = Subject(None, None)
    again = elicit(steer(rollouts=reuse), mute, JUDGE)
    assert again.rollouts == first.rollouts
    recorded = elicit(steer(rollouts=reuse, judge="recorded"), mute)
    assert (recorded.rollouts, recorded.judge) == (first.rollouts, "recorded")
    plain = elicit(steer(rollouts=reuse), mute)
    assert plain.report.kept == 12
    assert all(row.trait is None for row in plain.rollouts)


def test_the_vector_is_that_of_the_kept_chats(steer, subject, monkeypatch):
    monkeypatch.setattr("personality_vector.elicitation.extract.open_judge", lambda *_: JUDGE)
    vector, elicited = extract_persona(steer(layers=[1]))
    model, tokenizer = subject.model, subject.tokenizer
    expected = SteeringVector.extract(
        model, tokenizer, elicited.kept("positive"), elicited.kept("negative"), layers=[1]
    )
    torch.testing.assert_close(vector[1], expected[1])
    assert (str(vector.pole), vector.label) == ("extraversion:high", "extraversion:high")
    assert vector.counts == (6, 6)
    assert (vector.judge, vector.layers) == ("every third", (1,))
    assert vector.model


@pytest.mark.parametrize("pooling", ["prompt_last", "prompt_mean"])
def test_pooling_and_estimator_are_passed_on(steer, subject, pooling):
    vector, elicited = extract_persona(steer(pooling=pooling, estimator="pca"))
    assert (vector.pooling, vector.estimator) == (pooling, "pca")
    expected = SteeringVector.extract(
        subject.model,
        subject.tokenizer,
        elicited.kept("positive"),
        elicited.kept("negative"),
        pooling=pooling,
        estimator="pca",
    )
    for layer in vector.layers:
        torch.testing.assert_close(vector[layer], expected[layer])


def test_an_endpoint_judges_from_end_to_end(steer):
    asked = []

    def answer(body):
        text = body["messages"][0]["content"]
        asked.append(text)
        return likely({"100": 0.9} if "coherent" in text else {"50": 0.5, "52": 0.5})

    with serving(answer) as fake:
        judge = {"endpoint": {"model": "m", "base_url": fake.base_url}}
        with pytest.raises(DataError, match="12 by negative_trait"):
            extract_persona(steer(judge=judge))
    assert len(asked) == 2 * 24
    assert not any("You are bold." in text for text in asked)  # the judge does not see the side


def test_a_local_model_can_be_the_judge(steer, persona, pico):
    judge = open_judge(steer(judge={"local": {"checkpoint": str(pico("llama"))}}), persona)
    assert judge.name == f"local {pico('llama').name}"


@pytest.fixture
def statements(tmp_path):
    file = tmp_path / "statements.jsonl"
    rows = [
        {"trait": "extraversion", "level": level, "statement": f"I {verb} {place}", "part": part}
        for level, verb in (("high", "love"), ("low", "flee"))
        for part, place in (("train", "parties"), ("train", "crowds"), ("held_out", "fairs"))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"classifier": {"statements": str(file), "neutral": None}}


def test_statements_judge_poles_that_they_know(steer, persona, statements):
    judge = open_judge(steer(judge=statements), persona)
    assert judge.name == "classifier"
    role = persona.model_copy(update={"pole": None, "name": "gardener"})
    with pytest.raises(DataError, match="rates poles, and gardener has none; choose another"):
        open_judge(steer(judge=statements), role)


def test_a_judge_that_cannot_rate_the_persona_is_refused_before_anything_is_drawn(
    steer, monkeypatch
):
    monkeypatch.setattr("personality_vector.elicitation.elicit.draw", never)

    class Picky(EveryThird):
        def __call__(self, rubric, _answers, /):
            raise DataError(f"not {rubric.trait}")

    with pytest.raises(DataError, match="not extraversion:high"):
        elicit(steer(), Subject(None, None), Picky())


def test_whom_the_recipe_names_judges(steer, subject, persona, statements):
    seen = []
    # No rating is below 0: every pair is dropped or unscored.
    recipe = steer(judge=statements, thresholds={"trait": 0.0})
    with pytest.raises(DataError, match="no pair is left"):
        elicit(recipe, subject, open_judge(recipe, persona), record=seen.append)
    assert {row.rule for row in seen[-1]} <= {"unscored", "negative_trait"}


def test_a_missing_key_is_found_out_before_a_model_is_loaded(steer, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(Subject, "load", never)
    with pytest.raises(RecipeError, match="OPENAI_API_KEY is not set"):
        extract_persona(steer(judge={"endpoint": {"model": "m"}}))


def never(*_, **__):
    raise AssertionError("a model was loaded or asked")


def test_the_embedded_model_shows_what_its_system_prompt_says():
    """The shipped smoke recipe, cut short: answers differ in the direction of the instruction."""
    from personality_vector.elicitation.recipe import SteerRecipe
    from personality_vector.lab import find_recipe
    from personality_vector.recipes.reading import read_recipe

    settings = ["rollouts.pairs=1", "rollouts.questions=5", "rollouts.samples=1"]
    recipe = read_recipe(find_recipe("training/steering/smoke-persona"), SteerRecipe, settings)
    judge = open_judge(recipe, read_persona(recipe))
    elicited = elicit(recipe, Subject.load(recipe.model, device="cpu"), judge)
    traits = {
        side: [row.trait for row in elicited.rollouts if row.side == side and row.trait]
        for side in ("positive", "negative")
    }
    means = {side: sum(values) / len(values) for side, values in traits.items()}
    assert means["positive"] - means["negative"] > 30
    assert elicited.report.kept >= 2


def test_a_recipe_without_a_persona_has_none(steer, tmp_path):
    data = {"source": "s.jsonl"}
    recipe = type(steer()).parse(
        {"model": "m", "pole": "openness:low", "positive": data, "negative": data},
        origin="test",
        folder=tmp_path,
    )
    with pytest.raises(RecipeError, match="names no persona"):
        read_persona(recipe)


@pytest.mark.parametrize(
    ("layers", "error", "said"),
    [
        ([99], ModelError, "layer 99 does not exist"),
        ([], RecipeError, "layers: needs at least one"),
        ([1, 1], RecipeError, "layers: a value is given twice"),
        ([1, -2], DataError, "name the same block twice"),
    ],
)
def test_layers_are_checked_before_anything_is_generated(steer, monkeypatch, layers, error, said):
    monkeypatch.setattr("personality_vector.elicitation.elicit.draw", never)
    with pytest.raises(error, match=said):
        extract_persona(steer(layers=layers))
