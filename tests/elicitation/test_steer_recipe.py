"""The steer recipe: one of two forms, and keys that go together."""

import pytest

from personality_vector.errors import RecipeError
from personality_vector.recipes.steering import SteerRecipe

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
    judge = {"kind": "endpoint", "model": "m"}
    for data in (GIVEN, {**ASKED, "judge": judge, "thresholds": {"adaptive": True}}):
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
        ({**ASKED, "judge": {"kind": "endpoint"}}, "kind endpoint needs the key model"),
        ({**ASKED, "judge": {"kind": "local"}}, "kind local needs the key checkpoint"),
        ({**ASKED, "judge": {"kind": "statements"}}, "kind statements needs the key statements"),
        (
            {**ASKED, "judge": {"kind": "local", "checkpoint": "c", "base_url": "http://x"}},
            "base_url does not go with a judge of kind local",
        ),
        ({**ASKED, "judge": {"model": "m"}}, "model does not go with a judge of kind none"),
        ({**ASKED, "judge": {"kind": "recorded"}}, r"recorded needs rollouts\.reuse"),
        ({**ASKED, "thresholds": {"trait": 60.0}}, "thresholds need a judge"),
        ({**ASKED, "rollouts": {"temperature": 0.0}}, "samples must be 1"),
        ({**ASKED, "thresholds": {"trait": 101.0}}, "thresholds.trait"),
        ({**ASKED, "pooling": "mean"}, "pooling"),
        ({**ASKED, "judge": {"kind": "oracle"}}, "judge.kind"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(tmp_path, data, complaint):
    with pytest.raises(RecipeError, match=complaint):
        parsed(tmp_path, data)


def test_one_greedy_sample_is_allowed(tmp_path):
    recipe = parsed(tmp_path, {**ASKED, "rollouts": {"temperature": 0.0, "samples": 1}})
    assert recipe.rollouts.temperature == 0
