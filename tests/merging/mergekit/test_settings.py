"""Which value holds for which tensor and model."""

from pathlib import Path

import pytest

from personality_vector.errors import RecipeError
from personality_vector.merging.mergekit.recipe import MergekitRecipe
from personality_vector.merging.mergekit.settings import CONVENTIONS, regions_of, resolve, summary

NAMES = [
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.norm.weight",
    *(f"model.layers.{n}.{part}.weight" for n in range(5) for part in ("attn.q", "mlp.up")),
]
MLP = [f"model.layers.{n}.mlp.up.weight" for n in range(5)]


def values(method="ties", names=NAMES, **changes):
    data = {"merge_method": method, "base_model": "o/base", **changes}
    recipe = MergekitRecipe.parse(data, origin="m.yaml", folder=Path("/nowhere"))
    return resolve(recipe, regions_of(recipe, names), CONVENTIONS[method].parameters, names)


def one(**parameters):
    return [{"model": "o/one", "parameters": parameters}]


def weights(found, names, model="o/one"):
    return [found[name].of[model]["weight"] for name in names]


def test_a_gradient_runs_from_the_first_layer_to_the_last():
    found = values(models=one(weight=[0.0, 1.0, 5.0]))
    assert weights(found, MLP) == [0.0, 0.5, 1.0, 3.0, 5.0]
    assert weights(found, NAMES[:3]) == [0.0, 0.0, 0.0]  # as mergekit, also after the layers


def test_a_gradient_of_truths_takes_one_of_them():
    found = values(models=one(weight=1), parameters={"normalize": [True, False]})
    assert [found[name].shared["normalize"] for name in MLP] == [True] * 4 + [False]


def test_the_first_condition_that_fits_wins():
    rules = [{"filter": "layers.2", "value": 7}, {"filter": "mlp", "value": [0, 4]}, {"value": 9}]
    found = values(models=one(weight=rules))
    assert weights(found, MLP) == [0, 1, 7, 3, 4]
    assert weights(found, ["model.layers.2.attn.q.weight", "lm_head.weight"]) == [7, 9]


def test_a_model_comes_before_a_slice_and_a_slice_before_the_top():
    ranges = {"layer_range": [0, 5]}
    own = {"weight": [{"filter": "mlp", "value": 1}]}
    sources = [{"model": "o/base", **ranges}, {"model": "o/one", **ranges, "parameters": own}]
    inside = {"weight": [{"filter": "attn", "value": 2}], "lambda": 5}
    found = values(
        slices=[{"sources": sources, "parameters": inside}],
        parameters={"weight": 3, "lambda": 6, "density": 0.5},
    )
    assert weights(found, [MLP[0], "model.layers.0.attn.q.weight", "lm_head.weight"]) == [1, 2, 3]
    assert found[MLP[0]].shared["lambda"] == 5
    assert found[MLP[0]].of == {"o/base": {}, "o/one": {"weight": 1, "density": 0.5}}


def test_each_slice_has_its_own_gradient_and_models():
    def part(model, first, end):
        sources = [{"model": name, "layer_range": [first, end]} for name in ("o/base", model)]
        return {"sources": sources, "parameters": {"weight": [0, 6]}}

    found = values(slices=[part("o/one", 0, 4), part("o/two", 4, 5)])
    assert weights(found, MLP[:4]) == [0, 2, 4, 6]
    assert found[MLP[4]].of["o/two"]["weight"] == 6  # a slice of one layer has the last number
    assert set(found["model.embed_tokens.weight"].of) == {"o/base", "o/one"}
    assert set(found["model.norm.weight"].of) == {"o/base", "o/two"}


def test_defaults_are_those_of_mergekit():
    found = values("della", models=one(weight=1))[NAMES[0]]
    shared = {"normalize": True, "rescale": True, "int8_mask": False, "lambda": 1.0}
    assert found.shared == shared
    assert found.of["o/one"] == {"weight": 1, "density": 1.0, "epsilon": 0.15}
    normalized = {m for m in CONVENTIONS if CONVENTIONS[m].normalize}
    rescaled = {m for m in CONVENTIONS if CONVENTIONS[m].rescale}
    assert normalized == {"ties", "della"}
    assert rescaled == {"dare_linear", "dare_ties", "della", "della_linear"}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"models": one()}, "o/one: has no weight for lm_head.weight"),
        ({"models": one(weight=[{"filter": "mlp", "value": 1}])}, "has no weight for lm_head"),
        ({"models": one(weight=1, densty=1)}, "ties has no parameter 'densty'; did you mean den"),
        ({"models": one(weight=1, gamma=1)}, "ties has no parameter 'gamma'; it takes normalize"),
        ({"models": one(weight=1, **{"lambda": 2})}, "mergekit would ignore it here"),
        ({"models": one(weight=1, density=2)}, "density: a share lies in .0, 1., 2 does not"),
        ({"models": one(weight=1, density=[0.5, -1])}, "density: a share lies in"),
        ({"models": one(weight=True)}, "weight: give a number, not True"),
        ({"models": one(weight=1), "parameters": {"normalize": 1}}, "give true or false, not 1"),
        (
            {"models": one(weight=[{"filter": "mpl", "value": 1}])},
            "no tensor name contains the filter 'mpl'",
        ),
        ({"models": one(weight=1) * 2}, "the same model is given twice"),
    ],
)
def test_what_mergekit_takes_in_silence_is_refused(changes, says):
    with pytest.raises(RecipeError, match=says):
        values(**changes)


def slices(*ranges, base=None):
    parts = [
        {"sources": [{"model": "o/base", "layer_range": r}, {"model": "o/one", "layer_range": r}]}
        for r in ranges
    ]
    return [part | ({"base_model": base} if base else {}) for part in parts]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (slices([0, 3], [2, 5]), r"slices.1: takes layers \[2, 5\] of o/base where layer 3 comes"),
        (slices([1, 5]), r"slices.0: takes layers \[1, 5\] of o/base where layer 0 comes next"),
        (slices([0, 3], [3, 3]), "slices.1: takes layers"),
        (slices([0, 3]), "slices: end at layer 3, the model at 5"),
        (slices([0, 5], base="o/other"), "slices.0.base_model: give one base_model"),
    ],
)
def test_layers_are_not_moved_repeated_or_dropped(given, says):
    with pytest.raises(RecipeError, match=says):
        values(slices=given, parameters={"weight": 1})


def test_sources_of_other_layers_are_refused():
    given = slices([0, 5])
    given[0]["sources"][1]["layer_range"] = [0, 4]
    with pytest.raises(RecipeError, match=r"takes layers \[0, 4\] of o/one"):
        values(slices=given, parameters={"weight": 1})


def test_a_model_with_two_stacks_of_layers_has_no_slices():
    names = [*NAMES, "visual.blocks.0.q.weight"]
    with pytest.raises(RecipeError, match="several stacks"):
        values(names=names, slices=slices([0, 5]), parameters={"weight": 1})


def test_each_stack_has_its_own_depth():
    names = [*MLP, "visual.blocks.0.q.weight", "visual.blocks.1.q.weight"]
    found = values(names=names, models=one(weight=[0, 8]))
    assert weights(found, names) == [0, 2, 4, 6, 8, 0, 8]


def test_a_summary_says_where_values_differ():
    assert summary([{"a": 1, "b": 2}, {"a": 1, "b": 3}, {"c": 4}]) == {
        "a": 1,
        "b": "by tensor",
        "c": 4,
    }
