"""What of a mergekit YAML is read, and what is refused in one sentence."""

from pathlib import Path

import pytest

from personality_vector.errors import RecipeError
from personality_vector.merging.mergekit.recipe import MergekitRecipe, Rule
from personality_vector.merging.recipe import is_mergekit


def yaml(**changes):
    data = {
        "merge_method": "ties",
        "base_model": "org/base",
        "models": [{"model": "org/tuned", "parameters": {"weight": 0.5}}],
    }
    return {key: value for key, value in (data | changes).items() if value is not ...}


def parse(folder=Path("/nowhere"), **changes):
    return MergekitRecipe.parse(yaml(**changes), origin="m.yaml", folder=folder)


def of_model(**parameters):
    return [{"model": "org/tuned", "parameters": parameters}]


def rule(*points, part=None):
    return Rule(points=points, filter=part)


def test_mergekit_is_known_by_its_key():
    assert is_mergekit(yaml())
    assert not is_mergekit({"base": "b", "method": "ties", "terms": []})


def test_a_parameter_is_a_number_a_gradient_or_conditions():
    conditions = [{"filter": "mlp", "value": [1, 2]}, {"filter": "*", "value": 3}, {"value": 4}]
    recipe = parse(
        models=of_model(weight=0.5, density=[0.1, 0.9]),
        parameters={"lambda": conditions, "epsilon": {"filter": "x", "value": 1}},
    )
    given = recipe.models[0].parameters
    assert given == {"weight": (rule(0.5),), "density": (rule(0.1, 0.9),)}
    assert recipe.parameters["lambda"] == (rule(1, 2, part="mlp"), rule(3), rule(4))
    assert recipe.parameters["epsilon"] == (rule(1, part="x"),)


def test_a_truth_stays_one_and_a_number_keeps_its_type():
    recipe = parse(parameters={"normalize": [True, False], "lambda": {"value": [1, 2.0]}})
    (truths,), (numbers,) = recipe.parameters["normalize"], recipe.parameters["lambda"]
    assert repr((truths.points, numbers.points)) == "((True, False), (1, 2.0))"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"lamda": 2}, "unknown key 'lamda'"),
        ({"models": [{"model": "a/b", "wieght": 1}]}, "unknown key 'models.0.wieght'"),
        ({"models": of_model(weight=float("nan"))}, "weight: give a finite number, not nan"),
        ({"models": of_model(weight=float("inf"))}, "weight: give a finite number"),
        ({"models": of_model(weight="0.5")}, "weight: give a number, true or false, not '0.5'"),
        ({"models": of_model(weight=[])}, "weight: an empty list is not a value"),
        ({"models": of_model(weight=[{"filter": "a"}])}, "the key '.*weight.0.value' is missing"),
        ({"models": of_model(weight=[{"value": 1, "fliter": "a"}])}, "did you mean 'filter'"),
        (
            {"models": of_model(weight=[{"value": 1, "filter": 3}])},
            "weight.0.filter: Input should be",
        ),
        ({"models": [{"model": "a/b+lora"}]}, "MODEL.LORA is not read here.*tuned: ADAPTER"),
        ({"models": [{"model": "a/b@main"}]}, "revisions are not read here"),
        ({"models": [{"model": {"path": "a"}}]}, "give a path or a Hub id as a text"),
        ({"models": ...}, "give either models or slices"),
        ({"modules": {"text": {}}}, "modules is not read here"),
        ({"tokenizer_source": "union"}, "'union' would change tokens"),
        ({"tokenizer": {"source": "org/other"}}, "'org/other' would change tokens"),
        ({"tokenizer": {}}, "'union' would change tokens"),
        ({"tokenizer": {"source": "base", "tokens": {"a": {}}}}, "changing tokens"),
        ({"tokenizer": {"source": "base", "pad_to_multiple_of": 8}}, "padding the vocabulary"),
        ({"tokenizer_source": "base", "tokenizer": {"source": "base"}}, "not both"),
        ({"chat_template": "chatml"}, "chat_template"),
        ({"dtype": "bf16"}, "dtype: Input should be 'float32', 'bfloat16' or 'float16'"),
    ],
)
def test_what_is_refused(changes, says):
    with pytest.raises(RecipeError, match=f"^m.yaml: .*{says}"):
        parse(**changes)


def test_what_changes_nothing_is_taken():
    recipe = parse(
        tokenizer_source="base", chat_template="auto", dtype="torch.bfloat16", out_dtype="float32"
    )
    assert (recipe.dtype, recipe.out_dtype, recipe.vocabulary) == ("bfloat16", "float32", "base")
    assert parse(tokenizer={"source": "org/base"}).vocabulary == "org/base"


def test_models_are_found_beside_the_yaml_then_where_one_works_then_on_the_hub(
    tmp_path, monkeypatch
):
    beside, here = tmp_path / "beside", tmp_path / "here"
    for folder in (beside / "one", here / "one", here / "two"):
        folder.mkdir(parents=True)
    monkeypatch.chdir(here)
    names = ["one", "two", "org/three", "./four"]
    recipe = parse(beside, base_model=..., models=[{"model": name} for name in names])
    assert recipe.references == (
        str(beside / "one"),
        str(here / "two"),
        "org/three",
        str(here / "four"),
    )


def test_a_folder_may_have_a_plus_in_its_name(tmp_path):
    (tmp_path / "a+b").mkdir()
    assert parse(tmp_path, base_model="a+b").base_model == str(tmp_path / "a+b")


def test_the_base_comes_last_unless_it_is_named():
    assert parse().references == ("org/tuned", "org/base")
    models = [{"model": "org/base"}, {"model": "org/tuned"}]
    assert parse(models=models).references == ("org/base", "org/tuned")
