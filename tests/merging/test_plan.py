"""A plan is checked before a weight is written, and says all of what would be done."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import personality_vector as pv
from personality_vector import Checkpoint, Delta, Output, merge
from personality_vector.errors import (
    CheckpointError,
    ModelError,
    NonFiniteError,
    RecipeError,
)
from personality_vector.merging.methods import METHODS
from personality_vector.merging.plan import (
    forecast,
    plan_merge,
    plan_recipe,
    resolve_device,
)
from personality_vector.merging.recipe import MergeRecipe

NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.mlp.weight",
    "model.layers.1.mlp.weight",
    "model.layers.2.mlp.weight",
    "model.norm.weight",
    "lm_head.weight",
]
ALPHAS = [0.5, -2.0, (0.1, 0.9), {"*.mlp.*": 1.0, "embeddings": -0.5}]


@pytest.fixture
def pair(toy):
    """A base of three layers, and a fine-tuned model in which every entry is larger by 1."""
    base = {name: torch.arange(6.0).reshape(2, 3) for name in NAMES}
    return toy("base", **base), toy("tuned", **{name: t + 1 for name, t in base.items()})


def changes(path, base):
    """Return by how much the entries of each tensor moved."""
    found, start = Checkpoint.open(path), Checkpoint.open(base)
    return {name: (found[name] - start[name]).unique().tolist() for name in start.names}


# --- which tensors, and by how much ---


def planned(base, terms, output=None, device="auto", **given):
    return plan_merge(base, pv.merged(base, terms, **given), output=output, device=device)


def test_include_and_exclude_choose_what_moves(pair, tmp_path):
    base, tuned = pair
    given = {"include": ["*.mlp.*", "embeddings"], "exclude": ["*.layers.1.*"]}
    found = changes(merge(base, [(tuned, 1.0)], out=tmp_path / "out", **given).path, base)
    moved = {"model.embed_tokens.weight", "model.layers.0.mlp.weight", "model.layers.2.mlp.weight"}
    assert found == {name: [1.0 if name in moved else 0.0] for name in found}
    term = planned(base, [(tuned, 1.0)], **given).describe()["terms"][0]
    assert (term["tensors"], term["of_tensors"]) == (3, 6)


@pytest.mark.parametrize(
    ("alpha", "expected"),
    [
        ((0.25, 0.75), [0.25, 0.25, 0.5, 0.75, 0.75, 0.75]),
        ({"*.1.*": 0.5, "*.mlp.*": -0.25, "norms": 2.0}, [0.0, -0.25, 0.5, -0.25, 2.0, 0.0]),
    ],
)
def test_alpha_of_each_tensor_is_what_it_moves_by(pair, tmp_path, alpha, expected):
    base, tuned = pair
    found = changes(merge(base, [(tuned, alpha)], out=tmp_path / "out").path, base)
    assert [found[name] for name in NAMES] == [[value] for value in expected]


def test_alpha_over_depth_does_not_depend_on_what_else_is_included(pair, tmp_path):
    """The depth of a layer is that in the model, not among the tensors that a term changes."""
    base, tuned = pair
    given = {"include": ["*.layers.0.*", "*.layers.1.*"]}
    found = changes(merge(base, [(tuned, (0.25, 0.75))], out=tmp_path / "out", **given).path, base)
    assert found["model.layers.0.mlp.weight"] == [0.25]
    assert found["model.layers.1.mlp.weight"] == [0.5]


def test_terms_that_cannot_act_are_not_active(pair):
    base, tuned = pair
    source = pv.merged(base, [(tuned, 0.0), (tuned, {"norms": 0.5})]).source
    assert [term.position for term in source.active] == [1]
    assert source.names == ("model.norm.weight",)


def test_a_delta_given_twice_draws_two_masks(pair):
    base, tuned = pair
    part = ("lm_head.weight", slice(0, 1))
    twice = pv.merged(base, [(tuned, 0.5), (tuned, 0.5)], method="dare").source
    keys = [s.key for s in twice.slices(*part)]
    assert len(set(keys)) == 2
    turned = pv.merged(base, [(tuned, 0.5)], method="dare", seed=1).source
    assert turned.slices(*part)[0].key not in keys


# --- what is refused, before anything is written ---


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"method": "slerp"}, RecipeError, "unknown merge method 'slerp'"),
        ({"options": {"density": 0.5}}, RecipeError, "task_arithmetic takes lambda; got density"),
        ({"method": "ties", "options": {"density": 0.0}}, RecipeError, "density must be in (0, 1]"),
        ({"include": ["*.attn.*"]}, RecipeError, "'*.attn.*' matches no tensor"),
        ({"exclude": ["vision"]}, RecipeError, "'vision' matches no tensor"),
        ({"include": ["norms"], "exclude": ["*"]}, RecipeError, "leave no tensor"),
        ({"device": "mps"}, ModelError, "mps has no float64"),
        (
            {"method": "della", "options": {"drop_rate": 0.05, "epsilon": 0.2}},
            RecipeError,
            "della: drop_rate -/+ epsilon / 2 must stay in [0, 1)",
        ),
        (
            {"method": "breadcrumbs", "options": {"beta": 0.9, "gamma": 0.2}},
            RecipeError,
            "breadcrumbs: beta + gamma must be below 1",
        ),
    ],
)
def test_what_cannot_be_done_is_refused_with_what_would_be_right(
    pair, tmp_path, given, error, said
):
    base, tuned = pair
    with pytest.raises(error) as caught:
        merge(base, [(tuned, 0.5)], out=tmp_path / "out", **given)
    assert said in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "tuned"}


@pytest.mark.parametrize(
    "alpha",
    [
        float("nan"),
        float("-inf"),
        (0.1, float("inf")),
        {"norms": float("nan")},
    ],
)
def test_an_alpha_that_is_not_a_number_is_refused(pair, alpha):
    base, tuned = pair
    with pytest.raises(NonFiniteError, match="tuned: alpha must be a finite number"):
        planned(base, [(tuned, alpha)])


@pytest.mark.parametrize("alpha", [{"*.attn.*": 1.0}, {"*": 1.0, "vision": 0.5}])
def test_an_alpha_for_no_tensor_is_refused(pair, alpha):
    base, tuned = pair
    with pytest.raises(RecipeError, match="matches no tensor"):
        planned(base, [(tuned, alpha)])


def test_alpha_over_depth_of_a_model_without_layers_is_refused(toy):
    base, tuned = toy("flat", a=torch.ones(3)), toy("flat-tuned", a=torch.zeros(3))
    with pytest.raises(RecipeError, match="no tensor lies in a numbered layer"):
        planned(base, [(tuned, (0.0, 1.0))])


def test_a_delta_of_zero_is_refused(pair, toy):
    base, tuned = pair
    same = toy("same", **{name: Checkpoint.open(base)[name] for name in NAMES})
    with pytest.raises(CheckpointError, match="same: is zero in every tensor"):
        planned(base, [(tuned, 0.5), (same, 0.5)])


def test_a_delta_that_is_zero_where_it_is_included_is_refused(pair, toy):
    base, _ = pair
    start = Checkpoint.open(base)
    moved = {name: start[name] + ("norm" in name) for name in start.names}
    tuned = toy("norms only", **moved)
    assert planned(base, [(tuned, 0.5)])
    with pytest.raises(CheckpointError, match="is zero in every tensor"):
        planned(base, [(tuned, 0.5)], include=["head"])


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_stochastic_rounding_to_another_dtype_is_refused_by_the_plan(pair, dtype):
    base, tuned = pair
    for output in (Output(dtype, "stochastic"), Output(rounding="stochastic")):
        with pytest.raises(RecipeError, match="stochastic is for bfloat16 outputs"):
            planned(base, [(tuned, 0.5)], output=output)
    assert planned(base, [(tuned, 0.5)], output=Output("bfloat16", "stochastic"))


def test_one_tensor_of_another_dtype_is_enough_to_refuse_stochastic_rounding(toy):
    ones = torch.ones(3)
    base = toy("mixed", a=ones.bfloat16(), b=ones, count=torch.tensor([1]))
    tuned = toy("mixed-tuned", a=2 * ones.bfloat16(), b=2 * ones, count=torch.tensor([1]))
    with pytest.raises(RecipeError, match=r"this one is torch\.float32"):
        planned(base, [(tuned, 0.5)], output=Output(rounding="stochastic"))
    assert planned(base, [(tuned, 0.5)], output=Output("bfloat16", "stochastic"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"dtype": "int8"}, "output: dtype: Input should be 'same', 'float32'"),
        ({"shard_size": "5 apples"}, "'5 apples'"),
    ],
)
def test_an_impossible_output_is_refused_at_once(given, said):
    with pytest.raises(RecipeError) as caught:
        Output(**given)
    assert said in str(caught.value)


# --- devices ---


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("auto") == "cpu" == resolve_device("cpu")
    for device in ("cuda", "cuda:1"):
        with pytest.raises(ModelError, match=f"device {device}: torch sees 0 CUDA devices"):
            resolve_device(device)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("auto") == "cuda" == resolve_device("cuda")
    assert resolve_device("cuda:1") == "cuda:1"
    with pytest.raises(ModelError, match="device cuda:2: torch sees 2 CUDA devices"):
        resolve_device("cuda:2")


@pytest.mark.parametrize("device", ["gpu", "mps", "cuda:x", "", "cpu:0"])
def test_a_device_that_cannot_merge_is_refused(device):
    with pytest.raises(ModelError, match="device"):
        resolve_device(device)


# --- what the plan says ---


@pytest.mark.parametrize("alpha", ALPHAS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_the_description_is_json_and_complete(pair, alpha, method):
    base, tuned = pair
    delta = Delta.between(base, tuned, pole="extraversion:high")
    plan = planned(base, [(delta, alpha, None, "loud")], method=method, seed=3)
    said = plan.describe()
    assert json.loads(json.dumps(said, allow_nan=False)) == said
    assert said["method"] == method
    assert set(said["options"]) == set(METHODS[method].options)
    assert said["seed"] == 3
    (term,) = said["terms"]
    assert term["alpha"] == (list(alpha) if isinstance(alpha, tuple) else alpha)
    assert (term["label"], term["pole"]) == ("loud", "extraversion:high")
    assert term["identity"] == delta.identity
    assert plan.size == 6 * 6 * 4


def test_the_description_of_a_recipe_is_that_of_the_call(pair):
    base, tuned = pair
    alpha = {"norms": 0.5, "*.mlp.*": 0.25}
    recipe = MergeRecipe(
        base=str(base),
        method="ties",
        options={"density": 0.5},
        include=["norms", "*.mlp.*"],
        terms=[{"tuned": str(tuned), "alpha": alpha}],
    )
    given = {"include": ["norms", "*.mlp.*"], "options": {"density": 0.5}, "method": "ties"}
    of_recipe = plan_recipe(recipe).describe()
    of_call = planned(str(base), [(str(tuned), alpha)], **given).describe()
    assert {key: of_recipe[key] for key in of_call} == of_call


def test_a_dry_run_foresees_and_writes_nothing(pair, tmp_path):
    base, tuned = pair
    plan = planned(base, [(tuned, 0.5)])
    seen = forecast(plan, tmp_path / "deep" / "out")
    assert json.loads(json.dumps(seen)) == seen
    assert seen["norms"] == [6.0]
    assert 3e8 < seen["peak_memory"] < 4e8
    assert seen["device"] == plan.device
    assert not (tmp_path / "deep").exists()


def test_the_output_dtype_decides_the_size(pair):
    base, tuned = pair
    plan = planned(base, [(tuned, 0.5)])
    assert replace(plan, output=Output("bfloat16")).size * 2 == plan.size
    assert {tensor.dtype for tensor in plan.tensors} == {torch.float32}


PEAK = r"""
import pathlib, re, sys
from personality_vector.merging.merged import merged
from personality_vector.merging.plan import plan_merge
from personality_vector.merging.engine import write_merge

base, out, *terms = sys.argv[1:]
delta = merged(base, [(term, 0.3) for term in terms], method="della")
write_merge(plan_merge(base, delta, device="cpu"), out)
status = pathlib.Path("/proc/self/status").read_text()
peak, files = (int(re.search(rf"{key}:\s*(\d+)", status)[1]) for key in ("VmHWM", "RssFile"))
print(1024 * (peak - files))
"""
"""What getrusage calls the peak is at least that of the process that started this one."""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs the /proc of Linux")
def test_a_merge_stays_within_the_memory_that_was_foreseen(toy, tmp_path):
    """With the method that needs most, of tensors that alone would be 600 MB in float64."""
    shape = (2048, 8192)
    step = torch.arange(8192).remainder(97).div(512).bfloat16()
    paths = [toy(f"large {n}", w=(1 + n * step).expand(shape)) for n in range(4)]
    plan = planned(paths[0], [(path, 0.3) for path in paths[1:]], method="della")
    given = [sys.executable, "-c", PEAK, paths[0], tmp_path / "out", *paths[1:]]
    done = subprocess.run(list(map(str, given)), capture_output=True, text=True, check=True)
    foreseen = forecast(plan, tmp_path / "out")["peak_memory"]
    assert 1e8 < int(done.stdout) < foreseen < 5e8
