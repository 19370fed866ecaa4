"""Recipes of studies: interventions and measures are known by their keys, and stand for several."""

import json

import pytest

from personality_vector.errors import RecipeError
from personality_vector.lab import FACETS, builtin
from personality_vector.measures.spec import QUESTION
from personality_vector.study.recipe import CompareRecipe, EvalRecipe, SweepRecipe
from personality_vector.traits import BIG_FIVE, BIG_FIVE_POLES

WEIGHTS = {"label": "w", "tuned": "./t"}
MEASURES = ["likelihood"]


@pytest.fixture
def parsed(tmp_path):
    """Return ``parsed(*interventions, **more)``: a sweep, or a recipe of another ``kind``."""

    def parse(*interventions, kind=SweepRecipe, **more):
        data = {"base": "b", "interventions": list(interventions), "strengths": [1.0]}
        data |= {"measures": MEASURES, **more}
        return kind.parse(data, origin="r.yaml", folder=tmp_path)

    return parse


def labels(recipe):
    return [spec.label for spec in recipe.interventions]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"label": "x"}, "give exactly one of delta, tuned, terms, vector, neurons, prompt"),
        (
            {**WEIGHTS, "prompt": "openness:high"},
            "has keys of two kinds, tuned and prompt: give exactly one of delta",
        ),
        (
            {**WEIGHTS, "delta": "./d"},
            "interventions.0: give either delta (a saved delta) or tuned",
        ),
        ({"label": "x", "vectr": "v"}, "unknown key 'vectr'; did you mean 'vector'? give exactly"),
        ({**WEIGHTS, "strenghts": [1]}, "unknown key 'strenghts'; did you mean 'strengths'?"),
        ({**WEIGHTS, "kind": "weights"}, "unknown key 'kind'"),
        ({**WEIGHTS, "layers": [1]}, "unknown key 'layers'"),
        ({"label": "x", "vector": "v"}, "the key 'layers' is missing"),
        ({"tuned": "./t"}, "the key 'label' is missing"),
        ({**WEIGHTS, "label": " "}, "label"),
        ({**WEIGHTS, "label": "base"}, "a label must be a name other than 'base'"),
        ({**WEIGHTS, "strengths": []}, "strengths: needs at least one"),
        ({**WEIGHTS, "strengths": [1, 1]}, "strengths: a value is given twice"),
        ({**WEIGHTS, "strengths": [float("nan")]}, "strengths.0: Input should be a finite number"),
        ({"tuned": "./{trait}", "poles": ["openness"]}, "poles: 'openness' is not a pole"),
        ({"tuned": "./{trait}", "poles": "openness:low"}, "poles: a list of poles, such as"),
        ({"tuned": "./{trait}", "poles": []}, "poles: a list of poles, such as"),
        ({**WEIGHTS, "poles": ["openness"]}, "'openness' is not a pole"),
        ({**WEIGHTS, "label": "w {level}"}, "w {level}: {level} is in the label, but in no path"),
        ({"label": "{trait}:{level}", "tuned": "./{trait}"}, "{level} is in the label, but in no"),
        ({**WEIGHTS, "tuned": "{vectors}"}, "{vectors} stands for the path under vectors"),
        ({**WEIGHTS, "each": {}}, "each: a word with a list of its values"),
        ({**WEIGHTS, "each": {"trait": ["a"]}}, "each: 'trait' cannot be a word of your own"),
        ({**WEIGHTS, "each": {"a": [1, 1]}}, "each.a: a list of different numbers or texts"),
        ({**WEIGHTS, "each": {"a": [1]}}, "each.a: {a} occurs nowhere else in this intervention"),
        ({"composed": "./t"}, "composed: a path with {trait}, such as {vectors}, not './t'"),
        ({"composed": "./{trait}", "traits": "openness"}, "traits: a list of traits"),
        ({"composed": "./{trait}", "traits": ["a", "a"]}, "traits: a value is given twice"),
        ({"composed": "./{trait}", "terms": []}, "composed writes terms and poles itself"),
        ({**WEIGHTS, "on_top_of": [{"tuned": "./d"}]}, "others are on top of needs one strength"),
        ({**WEIGHTS, "on_top_of": [{"strength": 1.0}]}, "give exactly one of delta, tuned"),
        ("w", "interventions.0"),
    ],
)
def test_a_wrong_intervention_is_refused_in_one_sentence(parsed, given, says):
    with pytest.raises(RecipeError) as refused:
        parsed(given)
    sentence = str(refused.value)
    assert says in sentence
    assert sentence.startswith("r.yaml: ")
    assert "\n" not in sentence


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"measures": []}, "measures: needs at least one"),
        ({"measure": {"traits": ["openness"]}}, "unknown key 'measure'; did you mean 'measures'?"),
        ({"seed": 1}, "unknown key 'seed'; did you mean 'seeds'?"),
        ({"seeds": []}, "seeds: needs at least one"),
        ({"seeds": [1, 1]}, "seeds: a value is given twice"),
        ({"seeds": [0.5]}, "seeds.0: Input should be a valid integer"),
        ({"measures": ["interview"]}, "measures.0: needs traits to rate the answers for"),
        ({"measures": [{"probe": {}}]}, "measures.0: known are activations, "),
        ({"measures": [{"kind": "guards"}]}, "measures.0: known are"),
        ({"strengths": None}, "w has no strengths; give them to it, or to all"),
        ({"interventions": []}, "interventions: needs at least one"),
    ],
)
def test_a_wrong_study_is_refused_in_one_sentence(parsed, more, says):
    with pytest.raises(RecipeError) as refused:
        parsed(WEIGHTS, **more)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("measures", "pole", "says"),
    [
        (["guards"], "openness:high", "a comparison needs a likelihood among its measures"),
        ([{"likelihood": {"traits": ["openness"]}}], "humour:low", "do not list humour"),
    ],
)
def test_a_comparison_needs_the_likelihood_of_its_trait(parsed, measures, pole, says):
    with pytest.raises(RecipeError, match=says):
        parsed(WEIGHTS, kind=CompareRecipe, measures=measures, pole=pole)


def test_two_measures_of_one_kind_have_names(parsed):
    spec = {"likelihood": {"name": "other", "question": "Who?"}}
    recipe = parsed(WEIGHTS, measures=["likelihood", spec])
    assert [one.called for one in recipe.measures] == ["likelihood", "other"]


def test_a_measure_asks_what_the_interview_does_unless_it_says_otherwise(parsed):
    interview = {"traits": ["openness"], "question": "Who?", "generation": {"samples": 3}}
    guards = [{"guards": None}, {"guards": {"name": "own", "question": "Why?"}}]
    recipe = parsed(WEIGHTS, measures=["divergence", *guards, {"interview": interview}])
    asked = [(spec.question, spec.generation.samples) for spec in recipe.measures]
    assert asked == [("Who?", 3), ("Who?", 3), ("Why?", 1), ("Who?", 3)]


def test_an_interview_without_questions_asks_about_facets_and_so_do_the_other_measures(parsed):
    """Where a trait is not of the Big Five, there is nothing but the general question."""
    for traits, asked in ((["openness"], builtin(FACETS)), (["openness", "humour"], None)):
        recipe = parsed(WEIGHTS, measures=["divergence", {"interview": {"traits": traits}}])
        assert [spec.instrument for spec in recipe.measures] == [asked] * 2
    items = recipe.measures[1].asking().instrument.items
    assert [item.text for item in items] == [QUESTION]


def test_a_pole_in_a_text_is_one_intervention_for_each(parsed, tmp_path):
    recipe = parsed({"tuned": "./t/{trait}-{level}"})
    assert labels(recipe) == [str(pole) for pole in BIG_FIVE_POLES]
    assert recipe.interventions[0].tuned == str(
        tmp_path / "t" / labels(recipe)[0].replace(":", "-")
    )
    poles = ["humour:low", "openness:high"]
    some = parsed({"label": "p {trait}", "prompt": "{trait}:{level}", "poles": poles})
    assert labels(some) == ["p humour", "p openness"]
    assert [str(spec.prompt) for spec in some.interventions] == poles


def test_a_trait_alone_in_a_text_is_one_intervention_for_each_trait(parsed):
    recipe = parsed({"vector": "v/{trait}", "layers": [1]})
    assert sorted(labels(recipe)) == sorted(BIG_FIVE)


def test_a_pole_is_filled_in_at_any_depth(parsed):
    terms = [{"tuned": "t/{trait}-high", "alpha": 1.0}, {"tuned": "t/other", "alpha": -0.5}]
    recipe = parsed({"label": "{trait}", "terms": terms, "poles": ["openness:high"]})
    assert "openness-high" in recipe.interventions[0].model_dump_json()


def test_a_seed_in_a_path_is_an_intervention_of_each_seed(parsed, tmp_path):
    one, plain = parsed({"label": "w", "tuned": "t-{seed}"}, WEIGHTS | {"label": "x"}).interventions
    assert (one.has_seed, plain.has_seed) == (True, False)
    seventh = one.at_seed(7)
    assert seventh.tuned == str(tmp_path / "t-7")
    assert seventh.label == "w"


def test_what_it_dumps_it_reads(parsed, tmp_path):
    recipe = parsed(
        {"label": "v", "vector": "v", "layers": [1]},
        {"tuned": "t/{trait}-{level}", "poles": ["openness:low"]},
        measures=["likelihood", {"interview": {"traits": ["openness"], "judges": ["classifier"]}}],
        seeds=[0, 3],
    )
    dumped = json.loads(recipe.model_dump_json())
    assert SweepRecipe.parse(dumped, origin="again", folder=tmp_path / "elsewhere") == recipe


def test_an_evaluation_has_a_model_and_no_interventions(tmp_path):
    data = {"model": "m", "measures": MEASURES}
    assert EvalRecipe.parse(data, origin="r.yaml", folder=tmp_path).seeds == (0,)
    with pytest.raises(RecipeError, match="unknown key 'interventions'"):
        EvalRecipe.parse({**data, "interventions": [WEIGHTS]}, origin="r", folder=tmp_path)
