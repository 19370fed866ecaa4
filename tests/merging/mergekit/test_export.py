"""What of our recipes mergekit can express, and the convention that it lacks where it cannot."""

import pytest
import torch
import yaml as pyyaml

from personality_vector.errors import RecipeError
from personality_vector.merging.mergekit.export import export_mergekit
from personality_vector.merging.recipe import MergeRecipe
from personality_vector.numeric.random import generator_for

NAMES = [
    "lm_head.weight",
    "model.embed_tokens.weight",
    "model.norm.weight",
    *(f"model.layers.{n}.{part}.weight" for n in (0, 1, 10) for part in ("norm", "up")),
]


@pytest.fixture
def export(toy, tmp_path):
    """Return ``export(*alphas, **recipe)``: the exported YAML as a mapping, and its text."""
    for place, name in enumerate(["base", "one", "two"]):
        tensors = {}
        for tensor in NAMES:
            shape = (4,) if "norm" in tensor else (4, 4)
            base = torch.randn(shape, generator=generator_for(0, tensor))
            change = 0.01 * torch.randn(shape, generator=generator_for(place, tensor))
            tensors[tensor] = base + place * change
        toy(name, **tensors)

    def run(*alphas, **recipe):
        terms = [{"tuned": n, "alpha": a} for n, a in zip(["one", "two"], alphas, strict=False)]
        data = {"base": "base", "terms": terms, **recipe}
        text = export_mergekit(MergeRecipe.parse(data, origin="r.yaml", folder=tmp_path))
        return pyyaml.safe_load(text), text

    return run


def weights(content):
    return [model["parameters"]["weight"] for model in content["models"]]


def test_task_arithmetic(export, tmp_path):
    content, _ = export(0.8, -0.3, options={"lambda": 0.5})
    assert content == {
        "merge_method": "task_arithmetic",
        "base_model": str(tmp_path / "base"),
        "models": [
            {"model": str(tmp_path / "one"), "parameters": {"weight": 0.8}},
            {"model": str(tmp_path / "two"), "parameters": {"weight": -0.3}},
        ],
        "parameters": {"normalize": False, "lambda": 0.5},
        "dtype": "float32",
        "out_dtype": "float32",
    }


def test_a_mean_of_equal_alphas_has_its_alpha_in_lambda(export):
    options = {"trim": "per_tensor", "density": 0.3, "lambda": 2.0}
    content, _ = export(-0.4, -0.4, method="ties", options=options)
    assert content["parameters"] == {"normalize": True, "lambda": -0.8}
    assert weights(content) == [1.0, 1.0]
    assert [model["parameters"]["density"] for model in content["models"]] == [0.3, 0.3]


def test_a_sum_keeps_each_alpha(export):
    options = {"trim": "per_tensor", "consensus": "sum"}
    content, _ = export(0.8, -0.3, method="ties", options=options)
    assert content["parameters"] == {"normalize": False, "lambda": 1.0}
    assert weights(content) == [0.8, -0.3]


def test_dare_rescales_by_lambda(export):
    content, text = export(0.8, method="dare", options={"drop_rate": 0.9})
    assert content["merge_method"] == "dare_linear"
    assert content["parameters"] == {"normalize": False, "rescale": False, "lambda": 10.0}
    assert content["models"][0]["parameters"] == {"weight": 0.8, "density": 0.1}
    assert "# the masks are mergekit's own" in text


def test_dare_ties_of_a_mean(export):
    options = {"drop_rate": 0.75, "lambda": 0.5}
    content, _ = export(0.6, 0.6, method="dare_ties", options=options)
    assert content["parameters"]["normalize"] is True
    assert content["parameters"]["rescale"] is False
    assert content["parameters"]["lambda"] == pytest.approx(0.6 * 0.5 / 0.25)


def test_breadcrumbs_keeps_what_is_left(export):
    content, _ = export(0.8, method="breadcrumbs", options={"beta": 0.85, "gamma": 0.01})
    assert content["models"][0]["parameters"] == {"weight": 0.8, "density": 0.14, "gamma": 0.01}


def test_a_term_with_alpha_0_is_left_out(export, tmp_path):
    content, _ = export(0.0, 0.5)
    assert [model["model"] for model in content["models"]] == [str(tmp_path / "two")]


def holds(rules, name):
    """Return the value of a tensor by mergekit's rule: the first filter that is in its name."""
    return next(r["value"] for r in rules if r.get("filter") is None or r["filter"] in name)


def test_alpha_by_tensor_becomes_filters(export):
    content, _ = export([1.0, 3.0], {"*.1.*": 5.0, "norms": 7.0}, exclude=["embeddings"])
    depth, pattern = weights(content)
    assert [holds(depth, name) for name in NAMES[:3]] == [3.0, 0.0, 3.0]
    assert [holds(depth, name) for name in NAMES[3:]] == pytest.approx([1, 1, 1.2, 1.2, 3, 3])
    found = {name: holds(pattern, name) for name in NAMES}
    assert found["model.layers.1.norm.weight"] == found["model.layers.1.up.weight"] == 5.0
    assert found["model.layers.10.norm.weight"] == found["model.norm.weight"] == 7.0
    assert found["model.layers.10.up.weight"] == found["lm_head.weight"] == 0.0
    assert {"filter": "model.layers.1.", "value": 5.0} in pattern  # a whole layer has one rule


@pytest.mark.parametrize(
    ("alphas", "recipe", "says"),
    [
        ([1], {"method": "ties"}, "mergekit trims each tensor alone, not the whole vector"),
        ([1, 2], {"method": "ties", "options": {"density": 1.0}}, "consensus: mean divides by"),
        ([1], {"method": "ties", "options": {"density": 1.0, "election": "count"}}, "election"),
        ([1, 2], {"method": "dare_ties"}, "consensus: sum can be exported"),
        ([[1, 2]], {"method": "dare_ties"}, "consensus: mean divides by"),
        ([1], {"method": "della"}, "mergekit rescales a tensor to its L1 norm"),
        ([1], {"output": {"rounding": "stochastic"}}, "no stochastic rounding"),
        ([0, 0], {}, "every alpha is 0"),
        ([1], {"method": "tais"}, "unknown merge method"),
        ([1], {"options": {"density": 1}}, "task_arithmetic takes lambda; got density"),
        ([1], {"exclude": ["head"], "method": "dare_ties"}, "include or exclude"),
    ],
)
def test_the_convention_that_mergekit_lacks_is_named(export, alphas, recipe, says):
    with pytest.raises(RecipeError, match=says):
        export(*alphas, **recipe)


def test_what_is_not_a_model_is_named(export, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "a+b").mkdir()
    for term, says in (
        ({"delta": "saved"}, "terms.0: mergekit reads models, .*saved is a saved delta"),
        ({"tuned": "adapter"}, "terms.0: mergekit reads models, .*adapter is a LoRA adapter"),
        ({"tuned": "one", "of": "two"}, "terms.0.of: mergekit has no delta of another base"),
        ({"tuned": "a+b"}, "reads . and @ in a path as signs of its own"),
    ):
        with pytest.raises(RecipeError, match=says):
            export(terms=[{"alpha": 1.0, **term}])
