"""A merge writes what its plan says, or is refused and leaves nothing."""

import warnings
from dataclasses import dataclass, replace

import pytest
import torch

from personality_vector import Checkpoint, Delta, Output, merge
from personality_vector.delta.sources import whole
from personality_vector.errors import (
    BaseMismatchError,
    CheckpointError,
    NonFiniteError,
    OutputExistsError,
    PersonalityVectorError,
    RecipeError,
    StorageError,
    TensorMismatchError,
)
from personality_vector.merging.engine import write_merge
from personality_vector.merging.formula import MergeMethod
from personality_vector.merging.merged import merged
from personality_vector.merging.methods import METHODS
from personality_vector.merging.plan import plan_merge, plan_recipe
from personality_vector.merging.recipe import MergeRecipe

A = torch.arange(1.0, 7.0).reshape(2, 3)


def test_dtypes_of_tensors_stay_unless_asked_and_integers_always(toy, tmp_path):
    count = torch.tensor([7])
    base = toy("base", a=A, b=A.bfloat16(), count=count)
    tuned = toy("tuned", a=A + 1, b=(A + 1).bfloat16(), count=count)
    for dtype, expected in (("same", torch.bfloat16), ("float16", torch.float16)):
        path = merge(base, [(tuned, 0.5)], out=tmp_path / dtype, output=Output(dtype=dtype)).path
        found = Checkpoint.open(path)
        assert found["b"].dtype == expected
        assert torch.equal(found["b"].float(), A + 0.5)
        assert torch.equal(found["count"], count)


def test_a_lora_merge_leaves_other_tensors_byte_for_byte(pico, tmp_path):
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings(action="ignore"):  # PEFT reads a property that is deprecated
        model = AutoModelForCausalLM.from_pretrained(pico("llama"))
        lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
        get_peft_model(model, lora).save_pretrained(tmp_path / "adapter")
    path = merge(pico("llama"), [(tmp_path / "adapter", 2.0)], out=tmp_path / "out").path
    base, found = Checkpoint.open(pico("llama")), Checkpoint.open(path)
    delta = Delta.from_lora(tmp_path / "adapter", base)
    for name in base.names:
        expected = base[name]
        if name in delta:
            change = 2.0 * delta.source.part(name, whole(delta.source, name))
            expected = (expected.double() + change.reshape(expected.shape)).float()
        assert torch.equal(found[name], expected)


ODD = {"none": torch.zeros(0, 4), "one": torch.tensor(2.0), "column": A.reshape(6, 1), "row": A}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_tensors_of_every_shape_are_merged(toy, tmp_path, method, dtype):
    """No entry, a scalar, rows of one; and none of them is NaN, zero or left out."""
    base, tuned = (
        toy(name, **{key: (t + step).to(dtype) for key, t in ODD.items()})
        for name, step in (("base", 0.0), ("tuned", 0.125))
    )
    found = Checkpoint.open(
        merge(base, [(tuned, 0.5), (tuned, 0.5)], out=tmp_path / "out", method=method).path
    )
    for name, tensor in ODD.items():
        assert (found[name].dtype, found[name].shape) == (dtype, tensor.shape)
        assert bool(((found[name] - tensor).abs() <= 0.5).all())
    if method == "task_arithmetic":
        assert torch.equal(found["row"].double(), A + 0.125)


@pytest.mark.parametrize("threads", ["1", "4"])
def test_an_error_in_a_thread_is_the_same_error(toy, tmp_path, monkeypatch, threads):
    monkeypatch.setenv("PVEC_THREADS", threads)
    fine = {f"t{i}": A.reshape(-1) for i in range(8)}  # vectors: a plan samples matrices
    bad = {"t0": A.reshape(-1) + 1, "t5": spoilt(torch.nan).reshape(-1)}
    base, tuned = toy("base", **fine), toy("tuned", **fine | bad)
    with pytest.raises(NonFiniteError, match=r"tuned/model.safetensors: t5: 1 of 6") as caught:
        merge(base, [(tuned, 0.5)], out=tmp_path / "out")
    assert "while at tensor t5" in caught.value.__notes__
    assert {path.name for path in tmp_path.iterdir()} == {"base", "tuned"}


def test_a_recipe_and_a_call_write_the_same_bytes(pico, pico_tuned, tmp_path):
    base, tuned = pico("phi"), pico_tuned("phi")
    options = {"drop_rate": 0.3}
    merge(base, [(tuned, 0.5)], out=tmp_path / "call", method="dare", options=options, seed=4)
    recipe = MergeRecipe(
        base=str(base),
        method="dare",
        options=options,
        seed=4,
        terms=[{"tuned": str(tuned), "alpha": 0.5}],
    )
    write_merge(plan_recipe(recipe), tmp_path / "recipe")
    one, two = (tmp_path / name / "model.safetensors" for name in ("call", "recipe"))
    assert one.read_bytes() == two.read_bytes()


@dataclass
class Fault:
    error: type[PersonalityVectorError]
    said: str
    base: dict | None = None
    tuned: dict | None = None
    alpha: float = 1.0
    given: dict | None = None


def spoilt(value: float) -> torch.Tensor:
    return torch.where(A == 3.0, value, A)


FAULTS = {
    "nan in the base": Fault(
        NonFiniteError, "base/model.safetensors: b: 1 of 6", {"b": spoilt(torch.nan)}
    ),
    "nan, alpha 0": Fault(
        NonFiniteError, "base/model.safetensors: b: 1 of 6", {"b": spoilt(torch.nan)}, alpha=0.0
    ),
    "nan in a term": Fault(
        NonFiniteError, "tuned/model.safetensors: b: 1 of 6", None, {"b": spoilt(torch.nan)}
    ),
    "inf in a term": Fault(
        NonFiniteError, "tuned/model.safetensors: b: 1 of 6", None, {"b": spoilt(-torch.inf)}
    ),
    "shape": Fault(TensorMismatchError, "tuned: b has shape [3]", None, {"b": A[0]}),
    "missing": Fault(TensorMismatchError, "tuned: lacks b", None, {"b": None}),
    "extra": Fault(TensorMismatchError, "tuned: adds c", None, {"c": A}),
    "overflow in float16": Fault(
        NonFiniteError,
        "does not fit torch.float16",
        {"b": 1e5 * A},
        alpha=0.5,
        given={"output": Output(dtype="float16")},
    ),
    "overflow in bfloat16": Fault(
        NonFiniteError,
        "does not fit torch.bfloat16",
        {"b": A.bfloat16()},
        {"b": A.bfloat16() + 1},
        alpha=1e39,
    ),
    "overflow in float32": Fault(NonFiniteError, "does not fit", alpha=1e39),
    "alpha nan": Fault(NonFiniteError, "alpha must be a finite number, got nan", alpha=torch.nan),
    "alpha inf": Fault(NonFiniteError, "alpha must be a finite number, got inf", alpha=torch.inf),
    "method": Fault(RecipeError, "unknown merge method 'slerp'", given={"method": "slerp"}),
    "option": Fault(RecipeError, "got weight", given={"options": {"weight": 1.0}}),
    "density of dare": Fault(
        RecipeError,
        "drop_rate = 1 - density",
        given={"method": "dare", "options": {"density": 0.5}},
    ),
    "della beyond 0": Fault(
        RecipeError,
        "epsilon",
        given={"method": "della", "options": {"drop_rate": 0.1, "epsilon": 0.3}},
    ),
    "della beyond 1": Fault(
        RecipeError,
        "epsilon",
        given={"method": "della", "options": {"drop_rate": 0.9, "epsilon": 0.2}},
    ),
    "breadcrumbs of nothing": Fault(
        RecipeError,
        "gamma",
        given={"method": "breadcrumbs", "options": {"beta": 0.9, "gamma": 0.2}},
    ),
    "density 2": Fault(
        RecipeError, "in (0, 1], got 2", given={"method": "ties", "options": {"density": 2.0}}
    ),
    "stochastic float32": Fault(
        RecipeError,
        "stochastic is for bfloat16",
        alpha=0.5,
        given={"output": Output(rounding="stochastic")},
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_leaves_no_output(toy, tmp_path, name):
    fault = FAULTS[name]
    paths = {}
    for end, change in (("base", fault.base), ("tuned", fault.tuned)):
        tensors = {"a": A, "b": A + (end == "tuned"), **(change or {})}
        paths[end] = toy(end, **{key: t for key, t in tensors.items() if t is not None})
    terms = [(paths["tuned"], fault.alpha)]
    with pytest.raises(fault.error) as caught:
        merge(paths["base"], terms, out=tmp_path / "out", **(fault.given or {}))
    assert fault.said in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "tuned"}
    if name.startswith("overflow"):
        assert any(note.startswith("while at tensor ") for note in caught.value.__notes__)


def test_overflow_of_an_untouched_tensor_is_refused(toy, tmp_path):
    base, tuned = toy("base", a=1e5 * A), toy("tuned", a=1e5 * A + 1)
    with pytest.raises(NonFiniteError, match="does not fit"):
        merge(base, [(tuned, 0.0)], out=tmp_path / "out", output=Output(dtype="float16"))


def test_an_unknown_output_dtype_is_refused(toy, tmp_path):
    base, tuned = toy("base", a=A), toy("tuned", a=A + 1)
    with pytest.raises(RecipeError, match="output: dtype: Input should be 'same', 'float32'"):
        merge(base, [(tuned, 1.0)], out=tmp_path / "out", output=Output(dtype="int8"))


def test_no_terms_and_no_base_are_refused(pico, tmp_path):
    with pytest.raises(RecipeError, match="at least one term"):
        merge(pico("llama"), [], out=tmp_path / "out")
    with pytest.raises(CheckpointError, match="no such directory"):
        merge(tmp_path / "absent", [(pico("llama"), 1.0)], out=tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("saved", [False, True], ids=["by reference", "saved"])
def test_a_delta_of_another_base_of_the_same_shapes_is_refused(pico, pico_tuned, tmp_path, saved):
    delta = Delta.between(pico("llama"), pico_tuned("llama"))
    where = delta.save(tmp_path / "saved") if saved else delta
    with pytest.raises(BaseMismatchError, match="use the base it was taken from"):
        merge(pico_tuned("llama", seed=1), [(where, 1.0)], out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_that_exists_or_is_an_input_is_refused(toy, tmp_path):
    base, tuned = toy("base", a=A), toy("tuned", a=A + 1)
    before = (base / "model.safetensors").read_bytes()
    for out in (base, tuned, base / "out"):
        with pytest.raises(OutputExistsError):
            merge(base, [(tuned, 0.5)], out=out, force=True)
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExistsError, match="--force"):
        merge(base, [(tuned, 0.5)], out=tmp_path / "out")
    assert (base / "model.safetensors").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"base", "tuned", "out"}


def test_force_replaces_a_merge_of_ours(toy, tmp_path):
    base, tuned = toy("base", a=A), toy("tuned", a=A + 1)
    for alpha in (0.5, 0.25):
        merge(base, [(tuned, alpha)], out=tmp_path / "out", force=True)
    assert torch.equal(Checkpoint.open(tmp_path / "out")["a"], A + 0.25)


def test_a_disk_too_small_is_refused_before_weights_are_read(toy, tmp_path, monkeypatch):
    base, tuned = toy("base", a=A), toy("tuned", a=A + 1)
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    plan = plan_merge(base, merged(base, [(tuned, 0.5)], method="dare"))
    monkeypatch.setattr(Checkpoint, "part", lambda *_: pytest.fail("read"))
    with pytest.raises(StorageError, match="cannot be written"):
        write_merge(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_fine_tuned_model_is_written_only_where_the_method_returns_its_delta(
    toy, tmp_path, monkeypatch
):
    def half():
        return lambda weighted: 0.5 * weighted[0]

    monkeypatch.setitem(
        METHODS, "half", MergeMethod("half", "a test", METHODS["task_arithmetic"].sparsify, half)
    )
    base, tuned = toy("base", a=A), toy("tuned", a=A + 1)
    report = merge(base, [(tuned, 1.0)], method="half", out=tmp_path / "out")
    assert torch.equal(Checkpoint.open(tmp_path / "out")["a"], A + 0.5)
    assert report.realised == pytest.approx(1.0)


def test_a_delta_of_other_shapes_is_refused(toy, tmp_path):
    base, other = toy("base", a=A), toy("other", a=A[:1])
    delta = Delta.between(other, toy("tuned", a=A[:1] + 1))
    forged = replace(delta, base=Checkpoint.open(base).fingerprint)
    with pytest.raises(TensorMismatchError, match="a has shape"):
        merge(base, [(forged, 1.0)], out=tmp_path / "out")
