"""From a YAML and models on disk to a checked plan, its notes and its manifest."""

import json
import sys

import pytest
import torch

from personality_vector.errors import BaseMismatchError, RecipeError, TensorMismatchError
from personality_vector.merging.engine import write_merge
from personality_vector.numeric.random import generator_for

TENSORS = {
    "model.embed_tokens.weight": (12, 4),
    "model.layers.0.mlp.up.weight": (4, 4),
    "model.layers.1.mlp.up.weight": (4, 4),
}


@pytest.fixture
def models(toy):
    """Return ``models(dtype, tuned_dtype)``: writes ``base``, ``one`` and ``two``."""

    def make(dtype=torch.float32, tuned_dtype=None):
        for place, name in enumerate(["base", "one", "two"]):
            tensors = {}
            for tensor, shape in TENSORS.items():
                base = torch.randn(shape, generator=generator_for(0, tensor))
                change = 0.01 * torch.randn(shape, generator=generator_for(place, tensor))
                tensors[tensor] = (base + place * change).to(
                    dtype if place == 0 else tuned_dtype or dtype
                )
            toy(name, **tensors)

    return make


def yaml(*weights, method="ties", **changes):
    names = ["one", "two"][: len(weights)]
    return {
        "merge_method": method,
        "base_model": "base",
        "models": [
            {"model": name, "parameters": {"weight": weight}}
            for name, weight in zip(names, weights, strict=True)
        ],
        **changes,
    }


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (yaml(-1), "so one model's weight has no effect; set normalize: false to scale"),
        (yaml(0.5), "one model's weight has no effect"),
        (yaml(2, 3), "so only their ratios have an effect"),
        (yaml(0.5, -0.4), "which is small for weights of both signs"),
        (yaml(1, method="task_arithmetic", parameters={"density": 0.5}), "density has no effect"),
        (yaml(1, method="dare_ties", parameters={"density": 0.5}), "random masks are those of"),
    ],
)
def test_a_note_says_what_mergekit_does_in_silence(models, plan, given, says):
    models()
    assert any(says in note for note in plan(given).notes)


@pytest.mark.parametrize(
    "given",
    [
        yaml(1),
        yaml(0.5, 0.5),
        yaml(-1, parameters={"normalize": False}),
        yaml(-1, method="task_arithmetic"),
    ],
)
def test_there_is_no_note_where_there_is_nothing_to_say(models, plan, given):
    models()
    assert plan(given).notes == ()


def test_parameters_under_the_base_are_noted(models, plan):
    models()
    given = yaml(1)
    given["models"].append({"model": "base", "parameters": {"weight": 0.5}})
    assert plan(given).notes == ("parameters under the base have no effect",)


def test_the_manifest_makes_it_again(models, plan, tmp_path):
    models()
    given = yaml(0.5, [0.0, 1.0], dtype="bfloat16", parameters={"density": 0.5, "normalize": False})
    report = write_merge(plan(given, seed=3), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "MANIFEST.json").read_text())
    assert manifest == report.manifest
    assert manifest["recipe"] == given
    assert (manifest["method"], manifest["seed"]) == ("mergekit-ties", 3)
    assert manifest["options"]["normalize"] is False
    assert [term["alpha"] for term in manifest["terms"]] == [0.5, "by tensor"]
    assert [term["density"] for term in manifest["terms"]] == [0.5, 0.5]
    assert "mergekit-ties" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("stored", "tuned", "given", "written"),
    [
        ("bfloat16", "bfloat16", {}, torch.bfloat16),
        ("bfloat16", "float32", {}, torch.float32),
        ("float32", "bfloat16", {}, torch.float32),
        ("float32", "float32", {"dtype": "bfloat16"}, torch.bfloat16),
        ("bfloat16", "bfloat16", {"dtype": "float32"}, torch.float32),
        ("bfloat16", "bfloat16", {"dtype": "float32", "out_dtype": "float16"}, torch.float16),
    ],
)
@pytest.mark.parametrize("method", ["ties", "linear"])
def test_the_dtype_is_that_asked_for_or_that_holds_all(
    models, merged, method, stored, tuned, given, written
):
    if method == "linear":
        pytest.importorskip("mergekit")
    models(getattr(torch, stored), getattr(torch, tuned))
    asked = yaml(1.0, method=method, **given)
    asked["models"].append({"model": "base", "parameters": {"weight": 1.0}})
    assert {tensor.dtype for tensor in merged(asked).values()} == {written}


def test_an_adapter_or_a_saved_delta_is_not_a_model(models, plan, tmp_path):
    models()
    for name, file, kind in (
        ("adapter", "adapter_config.json", "a LoRA adapter, not a model; .*`tuned: ...`"),
        ("saved", "delta.json", "a saved delta, not a model; .*`delta: ...`"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
        given = yaml()
        given["models"] = [{"model": name, "parameters": {"weight": 1}}]
        with pytest.raises(RecipeError, match=kind):
            plan(given)


def test_models_have_to_fit_the_base(models, toy, plan):
    models()
    shapes = TENSORS | {"extra.weight": (2, 2)}
    toy("more", **{name: torch.randn(shape) for name, shape in shapes.items()})
    toy("other", **{name: 5 * torch.randn(shape) for name, shape in TENSORS.items()})
    given = yaml()
    given["models"] = [{"model": "more", "parameters": {"weight": 1}}]
    with pytest.raises(TensorMismatchError, match=r"adds extra.weight"):
        plan(given)
    given["models"][0]["model"] = "other"
    with pytest.raises(BaseMismatchError, match="is not a fine-tune"):
        plan(given)


@pytest.mark.parametrize("changes", [{"base_model": None}, {"models": [{"model": "base"}]}])
def test_a_base_and_a_model_beside_it_are_needed(models, plan, changes):
    models()
    with pytest.raises(RecipeError, match=r"m.yaml: ties needs base_model and a model beside it"):
        plan(yaml(1) | changes)


def test_a_tokenizer_that_is_asked_for_has_to_be_that_of_every_model(models, plan, tmp_path):
    models()
    for name, tokens in (("base", {"a": 0, "b": 1}), ("one", {"a": 1, "b": 0})):
        content = {"model": {"vocab": tokens}}
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(content))
    assert plan(yaml(1))
    with pytest.raises(TensorMismatchError, match=r"one: has other tokens than .*base"):
        plan(yaml(1, tokenizer_source="base"))
    (tmp_path / "one" / "tokenizer.json").write_text((tmp_path / "base/tokenizer.json").read_text())
    assert plan(yaml(1, tokenizer={"source": "base"}))


def test_without_mergekit_its_own_methods_say_what_to_install(models, plan, monkeypatch):
    models()
    monkeypatch.setitem(sys.modules, "mergekit", None)
    monkeypatch.setitem(sys.modules, "mergekit.merge_methods", None)
    with pytest.raises(RecipeError, match="pip install mergekit"):
        plan(yaml(1, method="linear"))
    assert plan(yaml(1, method="ties"))
