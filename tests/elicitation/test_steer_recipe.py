"""The steer recipe: one of two forms, and keys that go together."""

import pytest

from personality_vector.elicitation.recipe import SteerRecipe
from personality_vector.errors import RecipeError

DATA = {"source": "s.jsonl"}
GIVEN = {"model": "m", "pole": "openness:high", "positive": DATA, "negative": DATA}
ASKED = {"model": "m", "persona": "p.yaml"}


def parsed(tmp_path, data):
    return SteerRecipe.parse(data, origin="r.yaml", folder=tmp_path)


def test_the_defaults_are_the_papers(tmp_path):
    recipe = parsed(tmp_path, ASKED)
    spec, bar = recipe.rollouts, recipe.thresholds
    assert (spec.samples, spec.temperature, spec.top_p, spec.max_new_tokens) == (10, 1.0, 1.0, 1000)
    assert (spec.pairs, spec.questions) == (None, None)
    assert (bar.trait, bar.coherence, bar.adaptive) == (50, 50, False)
    assert (recipe.pooling, recipe.estimator) == ("response_mean", "mean_difference")
    assert recipe.persona == tmp_path / "p.yaml"


def test_what_it_dumps_it_reads(tmp_path):
    judge = {"endpoint": {"model": "m"}}
    reuse = {"judge": "recorded", "rollouts": {"reuse": "r.jsonl"}}
    rated = {**ASKED, "judge": judge, "thresholds": {"adaptive": True}}
    for data in (GIVEN, rated, {**ASKED, "judge": "none"}, {**ASKED, **reuse}):
        recipe = parsed(tmp_path, data)
        assert parsed(tmp_path, recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ({"model": "m"}, "give either persona, or positive and negative"),
        ({**GIVEN, "persona": "p.yaml"}, "give either persona, or positive and negative"),
        ({**GIVEN, "negative": None}, "positive, negative and pole go together"),
        ({**GIVEN, "pole": None}, "positive, negative and pole go together"),
        ({**GIVEN, "seed": 3}, "the key seed goes with persona"),
        ({**GIVEN, "rollouts": {"samples": 3}}, "the key rollouts goes with persona"),
        ({**GIVEN, "judge": "classifier"}, "the key judge goes with persona"),
        ({**ASKED, "judge": {"endpoint": {}}}, "judge: the key 'model' is missing"),
        ({**ASKED, "judge": "local"}, "judge: the key 'checkpoint' is missing"),
        (
            {**ASKED, "judge": {"local": {"checkpoint": "c", "base_url": "http://x"}}},
            "judge: unknown key 'base_url'",
        ),
        ({**ASKED, "judge": {"endpoint": {"model": "m"}, "local": {}}}, "has 2 keys"),
        ({**ASKED, "judge": "recorded"}, r"recorded needs rollouts\.reuse"),
        ({**ASKED, "thresholds": {"trait": 60.0}}, "thresholds need a judge"),
        ({**ASKED, "rollouts": {"temperature": 0.0}}, "the same reply; use 1 sample"),
        ({**ASKED, "thresholds": {"trait": 101.0}}, "thresholds.trait"),
        ({**ASKED, "pooling": "mean"}, "pooling"),
        ({**ASKED, "judge": "oracle"}, "judge: known are"),
        ({**ASKED, "judge": {"kind": "endpoint"}}, "judge: known are"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(tmp_path, data, complaint):
    with pytest.raises(RecipeError, match=complaint):
        parsed(tmp_path, data)


def test_a_judge_is_a_word_or_a_key_with_its_options(tmp_path):
    assert parsed(tmp_path, ASKED).judge == parsed(tmp_path, {**ASKED, "judge": "none"}).judge
    word = parsed(tmp_path, {**ASKED, "judge": "classifier"})
    assert word == parsed(tmp_path, {**ASKED, "judge": {"classifier": {}}})
    own = parsed(tmp_path, {**ASKED, "judge": {"classifier": {"statements": "s.jsonl"}}})
    assert own.judge.statements == tmp_path / "s.jsonl"


def test_one_greedy_sample_is_allowed(tmp_path):
    recipe = parsed(tmp_path, {**ASKED, "rollouts": {"temperature": 0.0, "samples": 1}})
    assert recipe.rollouts.temperature == 0
