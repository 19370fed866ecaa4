"""mergekit's other methods: what we check, write and say around its in-memory interface."""

import json
import warnings

import pytest
import torch

from personality_vector.errors import (
    NonFiniteError,
    OutputExistsError,
    RecipeError,
    TensorMismatchError,
)
from personality_vector.merging.mergekit.bridge import write_bridge

ONE = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
TWO = torch.tensor([[5.0, -2.0], [0.0, 4.0]])
STEPS = torch.arange(3)


@pytest.fixture(scope="module", autouse=True)
def mergekit():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("mergekit.merge_methods")


def linear(*weights, **changes):
    return {
        "merge_method": "linear",
        "models": [
            {"model": name, "parameters": {"weight": weight}}
            for name, weight in zip(["one", "two"], weights, strict=False)
        ],
        **changes,
    }


def test_linear_is_the_weighted_mean_and_integers_are_copied(toy, merged):
    toy("one", **{"a.weight": ONE, "steps": STEPS})
    toy("two", **{"a.weight": TWO, "steps": STEPS})
    found = merged(linear(3, 1))
    torch.testing.assert_close(found["a.weight"], (3 * ONE + TWO) / 4)
    assert torch.equal(found["steps"], STEPS)


def test_the_config_says_what_was_written(toy, merged, tmp_path):
    for name, tensor in (("one", ONE), ("two", TWO)):
        folder = toy(name, **{"a.weight": tensor})
        (folder / "config.json").write_text('{"model_type": "toy", "dtype": "float32"}')
    assert merged(linear(1, 1, dtype="bfloat16"))["a.weight"].dtype == torch.bfloat16
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config == {"model_type": "toy", "dtype": "bfloat16"}


def test_the_manifest_names_mergekit_and_its_version(toy, plan, tmp_path):
    from importlib.metadata import version

    toy("one", **{"a.weight": ONE})
    toy("two", **{"a.weight": TWO})
    done = write_bridge(plan(linear(3, 1)), tmp_path / "out").manifest
    assert (done["method"], done["source"]) == (
        "mergekit-linear",
        f"mergekit {version('mergekit')}",
    )
    assert done["options"] == {"normalize": True}
    assert [(term["label"], term["alpha"]) for term in done["terms"]] == [("one", 3), ("two", 1)]
    assert done["recipe"] == linear(3, 1)


def test_what_is_not_a_number_is_not_merged(toy, plan, tmp_path):
    toy("one", **{"a.weight": ONE})
    toy("two", **{"a.weight": TWO.log()})
    with pytest.raises(NonFiniteError, match=r"two.*a.weight: 2 of 4 values are NaN or infinite"):
        write_bridge(plan(linear(3, 1)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_not_a_number_is_not_written(toy, plan, tmp_path):
    toy("one", **{"a.weight": ONE})
    toy("two", **{"a.weight": TWO})
    with pytest.raises(NonFiniteError, match=r"a.weight: linear of mergekit gives NaN or infinity"):
        write_bridge(plan(linear(1, -1)), tmp_path / "out")  # divides by 0
    assert not (tmp_path / "out").exists()


def test_models_of_other_tensors_are_refused(toy, plan):
    toy("one", **{"a.weight": ONE})
    toy("two", **{"a.weight": TWO, "b.weight": TWO})
    with pytest.raises(TensorMismatchError, match=r"adds b.weight"):
        plan(linear(1, 1))


def test_an_input_is_never_the_output(toy, plan):
    toy("one", **{"a.weight": ONE})
    folder = toy("two", **{"a.weight": TWO})
    with pytest.raises(OutputExistsError, match="is, holds or lies in the input"):
        write_bridge(plan(linear(1, 1)), folder, force=True)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"merge_method": "slerp", "parameters": {"t": 0.5}}, "requires a base input"),
        ({"merge_method": "passthrough"}, "exactly 1 inputs; got 2"),
        ({"merge_method": "linaer"}, "unknown merge_method 'linaer'; mergekit has .*linear"),
        ({"parameters": {"weight": 1, "normalise": True}}, "did you mean normalize"),
        ({"parameters": {}}, "has no weight for a.weight"),
        ({"parameters": {"weight": 1, "normalize": 1}}, "give true or false, not 1"),
    ],
)
def test_what_mergekit_would_refuse_is_refused_before_a_tensor_is_read(toy, plan, given, says):
    toy("one", **{"a.weight": ONE})
    toy("two", **{"a.weight": TWO})
    models = [{"model": "one"}, {"model": "two"}]
    with pytest.raises(RecipeError, match=f"m.yaml: .*{says}"):
        plan({"merge_method": "linear", "models": models, **given})
