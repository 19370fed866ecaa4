"""From a persona to chats and a vector: what is kept is what is read, and it is recorded."""

import json

import pytest
import torch
from personality_vector.elicitation.raters import open_rater
from personality_vector.judges.rating import Rating

from personality_vector.elicitation.extract import extract_persona
from personality_vector.elicitation.pipeline import elicit, evaluation_instrument, read_persona
from personality_vector.elicitation.rollouts import to_jsonl
from personality_vector.errors import DataError, ModelError, RecipeError, TraitError
from personality_vector.steering import SteeringVector
from tests.fake_endpoint import likely, serving


class EveryThird:
    """Rates by the place of the reply: every third pair is unclear, the first is unscored."""

    label = "every third"

    def __call__(self, _persona, exchanges, /):
        half = len(exchanges) // 4  # a sample has two sides
        ratings = []
        for place in range(len(exchanges)):
            number, is_positive = place % half, place // half % 2 == 0
            trait = 90.0 if is_positive else (60.0 if number % 3 == 2 else 5.0)
            ratings.append(Rating(None, None, "?") if number == 0 else Rating(trait, 99.0))
        return ratings


@pytest.fixture
def judged(monkeypatch):
    """Let a stand-in judge whatever the recipe asks."""
    rater = EveryThird()
    monkeypatch.setattr("personality_vector.elicitation.pipeline.open_rater", lambda *_: rater)
    return rater


LOCAL = {"kind": "local", "checkpoint": "judge"}  # the kind that the stand-in pretends to be


@pytest.mark.usefixtures("judged")
def test_what_is_kept_comes_in_pairs_with_the_system_prompts(steer, pico_chat, persona):
    elicited = elicit(steer(judge=LOCAL), *pico_chat)
    assert elicited.report.dropped == {
        "empty": 0, "unscored": 2, "positive_trait": 0, "negative_trait": 4, "coherence": 0
    }  # fmt: skip
    assert len(elicited.positive) == len(elicited.negative) == elicited.report.kept == 6
    opposite = {pair.positive: pair.negative for pair in persona.instructions}
    for one, other in zip(elicited.positive, elicited.negative, strict=True):
        assert [message["role"] for message in one] == ["system", "user", "assistant"]
        assert other[0]["content"] == opposite[one[0]["content"]]
        assert other[1] == one[1]
    assert elicited.judge == "every third"


def test_nobody_judging_keeps_all(steer, pico_chat):
    elicited = elicit(steer(), *pico_chat)
    assert elicited.report.kept == elicited.report.pairs == 12
    assert elicited.judge == "none"
    assert all(row.kept and row.trait is None for row in elicited.rollouts)


def test_a_low_pole_swaps_the_sides(steer, pico_chat):
    high, low = (
        elicit(steer(pole=f"extraversion:{level}"), *pico_chat) for level in ("high", "low")
    )
    assert (high.positive, high.negative) == (low.negative, low.positive)
    assert str(low.persona.pole) == "extraversion:low"
    with pytest.raises(RecipeError, match="persona extraversion is of extraversion:high"):
        read_persona(steer(pole="openness:high"))


@pytest.mark.usefixtures("judged")
def test_everything_is_recorded_when_it_is_there(steer, pico_chat):
    seen = []
    elicited = elicit(steer(judge=LOCAL), *pico_chat, record=seen.append)
    drawn, rated, done = seen
    assert all(row.reply and row.trait is None for row in drawn)
    assert any(row.trait == 90.0 and not row.kept for row in rated)
    assert tuple(done) == elicited.rollouts
    strict = steer(judge=LOCAL, thresholds={"coherence": 100.0})
    with pytest.raises(DataError, match="nothing is left"):
        elicit(strict, *pico_chat, record=seen.append)
    assert {row.rule for row in seen[-1]} == {"unscored", "negative_trait", "coherence"}


@pytest.mark.usefixtures("judged")
def test_replies_and_ratings_of_an_earlier_run_are_used_again(
    steer, pico_chat, tmp_path, monkeypatch
):
    file = tmp_path / "rollouts.jsonl"
    first = elicit(steer(judge=LOCAL), *pico_chat)
    file.write_text(to_jsonl(first.rollouts), encoding="utf-8")
    reuse = {"reuse": str(file)}
    again = elicit(steer(rollouts=reuse, judge=LOCAL), None, None)
    assert again.rollouts == first.rollouts
    monkeypatch.undo()
    recorded = steer(rollouts=reuse, judge={"kind": "recorded"})
    assert elicit(recorded, None, None).rollouts == first.rollouts
    plain = elicit(steer(rollouts=reuse), None, None)
    assert plain.report.kept == 12
    assert all(row.trait is None for row in plain.rollouts)


@pytest.mark.usefixtures("judged")
def test_the_vector_is_that_of_the_kept_chats(steer, pico_chat):
    recipe = steer(judge=LOCAL, layers=[1])
    vector, elicited = extract_persona(recipe)
    expected = SteeringVector.extract(*pico_chat, elicited.positive, elicited.negative, layers=[1])
    torch.testing.assert_close(vector[1], expected[1])
    assert (str(vector.pole), vector.label) == ("extraversion:high", "extraversion:high")
    assert vector.counts == (6, 6)
    assert (vector.judge, vector.layers) == ("every third", (1,))
    assert vector.model


@pytest.mark.parametrize("pooling", ["prompt_last", "prompt_mean"])
def test_pooling_and_estimator_are_passed_on(steer, pico_chat, pooling):
    vector, elicited = extract_persona(steer(pooling=pooling, estimator="pca"))
    assert (vector.pooling, vector.estimator) == (pooling, "pca")
    expected = SteeringVector.extract(
        *pico_chat, elicited.positive, elicited.negative, pooling=pooling, estimator="pca"
    )
    for layer in vector.layers:
        torch.testing.assert_close(vector[layer], expected[layer])


def test_an_endpoint_judges_from_end_to_end(steer, pico_chat):
    asked = []

    def answer(body):
        text = body["messages"][0]["content"]
        asked.append(text)
        return likely({"100": 0.9} if "coherent" in text else {"50": 0.5, "52": 0.5})

    with serving(answer) as fake:
        judge = {"kind": "endpoint", "model": "m", "base_url": fake.base_url}
        with pytest.raises(DataError, match="12 by negative_trait"):
            elicit(steer(judge=judge), *pico_chat)
    assert len(asked) == 2 * 24
    assert not any("You are bold." in text for text in asked)  # the judge does not see the side


def test_a_local_model_can_be_the_judge(steer, persona, pico):
    rater = open_rater(steer(judge={"kind": "local", "checkpoint": str(pico("llama"))}), persona)
    assert rater.label == f"local {pico('llama')}"


@pytest.fixture
def statements(tmp_path):
    file = tmp_path / "statements.jsonl"
    rows = [
        {"trait": "extraversion", "level": level, "statement": f"I {verb} {place}", "part": part}
        for level, verb in (("high", "love"), ("low", "flee"))
        for part, place in (("train", "parties"), ("train", "crowds"), ("held_out", "fairs"))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"kind": "statements", "statements": str(file)}


def test_statements_judge_poles_that_they_know(steer, persona, statements):
    rater = open_rater(steer(judge=statements), persona)
    assert rater.label == "statements"
    role = persona.model_copy(update={"pole": None, "name": "gardener"})
    with pytest.raises(TraitError, match="persona gardener is of no pole: choose the kind"):
        open_rater(steer(judge=statements), role)


def test_a_missing_key_is_found_out_before_anything_is_generated(steer, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(RecipeError, match="OPENAI_API_KEY is not set"):
        elicit(steer(judge={"kind": "endpoint", "model": "m"}), None, None)


def test_the_other_questions_make_an_instrument(persona):
    instrument = evaluation_instrument(persona)
    assert [item.text for item in instrument.items] == ["How?"]
    assert {item.trait for item in instrument.items} == {"extraversion"}
    silent = persona.model_copy(
        update={"questions": persona.questions.model_copy(update={"evaluate": ()})}
    )
    with pytest.raises(RecipeError, match="no questions for evaluation"):
        evaluation_instrument(silent)


def test_the_embedded_model_shows_what_its_system_prompt_says():
    """The shipped smoke recipe, cut short: answers differ in the direction of the instruction."""
    from personality_vector.recipes.steering import SteerRecipe

    from personality_vector.lab import find_recipe
    from personality_vector.recipes.reading import read_recipe
    from personality_vector.subject.models import load_model, load_tokenizer

    settings = ["rollouts.pairs=1", "rollouts.questions=5", "rollouts.samples=1"]
    recipe = read_recipe(find_recipe("training/steering/smoke-persona"), SteerRecipe, settings)
    elicited = elicit(recipe, load_model(recipe.model), load_tokenizer(recipe.model))
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
    def never(*_, **__):
        raise AssertionError("a rollout was drawn")

    monkeypatch.setattr("personality_vector.elicitation.pipeline.draw", never)
    with pytest.raises(error, match=said):
        extract_persona(steer(layers=layers))
