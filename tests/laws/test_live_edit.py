"""Law 6: a live edit restores bit-identical weights, whatever happens; nothing is subtracted."""

import shutil
import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, product
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

import personality_vector as pv
from personality_vector import merge
from personality_vector.checkpoint import Checkpoint
from personality_vector.delta import Delta, open_delta
from personality_vector.delta.sources import TensorSource, whole
from personality_vector.interventions.weights import WeightEdit
from personality_vector.merging.live import live_edit
from personality_vector.subject.models import load_model
from personality_vector.subject.subject import Subject
from tests.rows import EVERY_ROW

FAMILIES = ("llama", "qwen2", "gemma2", "gpt_neox", "mixtral")
OTHERS = ("phi", "gpt2", "qwen3", "gemma3_text", "mistral", "phi3", "olmo2")
DTYPES = ("float32", "bfloat16")
TOLERANCE = 1e-5


def _turned(dtypes: Sequence[str], alphas: Sequence[float]) -> list[tuple[str, str, float]]:
    """Return every family in every dtype, each with one alpha, in turn."""
    return [(*each, a) for each, a in zip(product(FAMILIES, dtypes), cycle(alphas), strict=False)]


@dataclass
class FailsAt(TensorSource):
    """The tensors of another source, of which one cannot be read."""

    source: Any
    name: str
    error: BaseException

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: self.source.shape(name) for name in self.source.names}

    @property
    def _origins(self) -> tuple[Any, ...]:
        return (self.source,)

    def part(self, name: str, part: slice) -> Tensor:
        if name == self.name:
            raise self.error
        return self.source.part(name, part)

    def tuned_part(self, name: str, part: slice, base: Tensor) -> Tensor | None:
        return self.source.tuned_part(name, part, base)


def copies(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def changed(before: dict[str, Tensor], model: Any) -> set[str]:
    after = model.state_dict()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


@pytest.fixture
def delta(pico, pico_tuned):
    def make(family: str, dtype: str = "float32") -> Delta:
        return Delta.between(pico(family, dtype), pico_tuned(family, dtype))

    return make


@pytest.fixture
def adapter(pico, tmp_path):
    """A LoRA adapter of pico llama that changes queries and the up-projection."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings(action="ignore"):  # PEFT reads a property that is deprecated
        model = AutoModelForCausalLM.from_pretrained(pico("llama"))
        config = LoraConfig(r=2, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
        get_peft_model(model, config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_restored_bit_for_bit(pico, delta, family, dtype):
    model = load_model(pico(family, dtype), dtype=dtype)
    before = copies(model)
    with WeightEdit(delta(family, dtype)).applied(Subject(model, None), 1.7):
        assert changed(before, model) == set(before)
    assert not changed(before, model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_restored_after_an_exception_in_the_body(pico, delta, family, dtype):
    model = load_model(pico(family, dtype), dtype=dtype)
    before = copies(model)
    with (
        pytest.raises(KeyboardInterrupt),
        WeightEdit(delta(family, dtype)).applied(Subject(model, None), -3.0),
    ):
        raise KeyboardInterrupt
    assert not changed(before, model)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("error", [OSError("the disk went away"), KeyboardInterrupt()])
def test_weights_are_restored_after_an_exception_while_applying(pico, delta, family, error):
    model = load_model(pico(family, "bfloat16"), dtype="bfloat16")
    before = copies(model)
    whole = delta(family, "bfloat16")
    middle = whole.names[len(whole.names) // 2]
    broken = replace(whole, source=FailsAt(whole.source, middle, error))
    with pytest.raises(type(error)), WeightEdit(broken).applied(Subject(model, None), 1.0):
        pytest.fail("the body must not run on half an edit")
    assert not changed(before, model)


def held(model: Any, names: Any) -> dict[str, Tensor]:
    """Return the live weights, by their names on disk."""
    states = revert_weight_conversion(model, model.state_dict())
    return {name: states[name].clone() for name in names}


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_an_adapter_gives_the_same_logits_merged_and_live(pico, tmp_path, family):
    from peft import LoraConfig, get_peft_model

    base, ids = pico(family), torch.arange(5, 21)[None]
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    config.base_model_name_or_path = str(base)
    with warnings.catch_warnings(action="ignore"):
        get_peft_model(load_model(base), config).save_pretrained(tmp_path / "adapter")
    change = open_delta(tmp_path / "adapter", Checkpoint.open(base))
    merge(base, [(tmp_path / "adapter", 0.7)], out=tmp_path / "merged")
    model = load_model(base)
    with torch.no_grad(), live_edit(model, change, 0.7):
        live = model(ids).logits
    with torch.no_grad():
        assert torch.equal(live, load_model(tmp_path / "merged")(ids).logits)
        assert not torch.allclose(live, model(ids).logits)


@pytest.fixture
def require_live_as_written(pico, pico_tuned, merged, require_same_bytes):
    def check(method: str, options: dict[str, Any], dtype: str, strength: float) -> None:
        base = pico("phi", dtype)
        terms = [
            (pico_tuned("phi", dtype, seed), alpha) for seed, alpha in enumerate((0.7, 1.0, -0.4))
        ]
        for given in (terms, terms[1:2]):
            delta = pv.merged(
                base, given, method=method, options={**options, "lambda": 1.0}, seed=2
            )
            model = load_model(base, dtype=dtype)
            with live_edit(model, delta, strength):
                found = held(model, Checkpoint.open(base).names)
            written = {**options, "lambda": strength}
            require_same_bytes(found, merged(base, given, method=method, options=written, seed=2))

    return check


@EVERY_ROW
def test_a_live_edit_of_a_merge_holds_the_weights_that_it_writes_at_that_lambda(
    require_live_as_written, method, options
):
    require_live_as_written(method, options, "bfloat16", -1.3)


@pytest.mark.parametrize(("dtype", "strength"), [("float32", 1.0), ("float16", 0.4)])
@pytest.mark.parametrize("method", ["ties", "dare"])
def test_so_it_does_in_other_dtypes(require_live_as_written, method, dtype, strength):
    require_live_as_written(method, {}, dtype, strength)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("saved", [False, True], ids=["by reference", "saved"])
def test_a_live_edit_restores_what_addition_cannot(
    pico, weights, tmp_path, dtype, saved, require_same_bytes
):
    """Where ``base + (tuned - base)`` is not ``tuned``; but not upon another edit."""
    base, tuned = pico("llama", dtype), tmp_path / "tuned"
    shutil.copytree(base, tuned)
    ends = {name: tensor * 1e-9 for name, tensor in weights(base).items()}
    save_file(ends, tuned / "model.safetensors")
    change = Delta.between(base, tuned)
    change = Delta.load(change.save(tmp_path / "saved")) if saved else change
    model = load_model(base, dtype=dtype)
    with live_edit(model, change):
        require_same_bytes(held(model, ends), ends)
    with live_edit(model, change, 0.5):
        between = held(model, ends)
        with live_edit(model, change):
            expected = {
                name: between[name].double()
                + change.source.part(name, whole(change.source, name)).reshape(between[name].shape)
                for name in ends
            }
            same_dtype = {name: tensor.to(between[name].dtype) for name, tensor in expected.items()}
            require_same_bytes(held(model, ends), same_dtype)


@pytest.mark.parametrize(("family", "dtype", "alpha"), _turned(DTYPES, [-1.0, 0.3, 1.0]))
def test_weights_are_base_plus_alpha_delta_rounded_once(
    pico, pico_tuned, delta, family, dtype, alpha, restated, require_same_bytes
):
    base = pico(family, dtype)
    model = load_model(base, dtype=dtype)
    with WeightEdit(delta(family, dtype)).applied(Subject(model, None), alpha):
        found = held(model, Checkpoint.open(base).names)
    require_same_bytes(found, restated(base, [(pico_tuned(family, dtype), alpha)]))


@pytest.mark.parametrize(("family", "dtype", "alpha"), _turned([*DTYPES, "float16"], [-1.3, 1.0]))
def test_a_live_edit_holds_the_weights_that_a_merge_writes(
    pico, delta, merged, family, dtype, alpha, require_same_bytes
):
    base, change = pico(family, dtype), delta(family, dtype)
    model = load_model(base, dtype=dtype)
    with WeightEdit(change).applied(Subject(model, None), alpha):
        found = held(model, Checkpoint.open(base).names)
    require_same_bytes(found, merged(base, [(change, alpha)]))


@pytest.mark.parametrize("storage", ["float32", "bfloat16", "lora"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("alpha", [-0.7, 1.0])
def test_a_live_edit_of_a_saved_delta_holds_what_a_merge_of_it_writes(
    pico, delta, adapter, merged, tmp_path, dtype, storage, alpha, require_same_bytes
):
    base = pico("llama", dtype)
    whole = (
        Delta.from_lora(adapter, base, stated=True) if storage == "lora" else delta("llama", dtype)
    )
    change = Delta.load(whole.save(tmp_path / "saved", storage=storage))
    model = load_model(base, dtype=dtype)
    with WeightEdit(change).applied(Subject(model, None), alpha):
        found = held(model, Checkpoint.open(base).names)
    require_same_bytes(found, merged(base, [(change, alpha)]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_live_edit_of_a_combination_is_a_merge_of_its_terms(
    pico, pico_tuned, merged, dtype, require_same_bytes
):
    """With factors that are powers of two, so that no product is rounded."""
    base = pico("llama", dtype)
    one, two = (Delta.between(base, pico_tuned("llama", dtype, seed=seed)) for seed in (0, 1))
    model = load_model(base, dtype=dtype)
    with WeightEdit(one * 0.5 - two * 0.25).applied(Subject(model, None), 2.0):
        found = held(model, Checkpoint.open(base).names)
    require_same_bytes(found, merged(base, [(one, 1.0), (two, -0.5)]))


def test_the_share_that_survives_is_that_of_a_merge(pico, delta, tmp_path):
    base, change = pico("llama", "bfloat16"), delta("llama", "bfloat16")
    model = load_model(base, dtype="bfloat16")
    with WeightEdit(change).applied(Subject(model, None), 0.02) as edited:
        share = edited.realised
    report = merge(base, [(change, 0.02)], out=tmp_path / "out")
    assert share == pytest.approx(report.realised, rel=1e-9)
    assert 0.0 < share < 1.0


@pytest.mark.parametrize("family", FAMILIES)
def test_alpha_one_is_the_fine_tuned_model(pico, pico_tuned, delta, prompts, family):
    model, tuned = load_model(pico(family)), load_model(pico_tuned(family))
    with torch.no_grad(), WeightEdit(delta(family)).applied(Subject(model, None), 1.0):
        for row in prompts:
            got, expected = model(row[None]).logits, tuned(row[None]).logits
            torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strength_zero_touches_nothing(pico, delta, dtype):
    model = load_model(pico("qwen2", dtype), dtype=dtype)
    versions = {name: value._version for name, value in model.named_parameters()}
    with WeightEdit(delta("qwen2", dtype)).applied(Subject(model, None), 0.0):
        pass
    assert versions == {name: value._version for name, value in model.named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_edited_model_is_one_model(pico, delta, differences, family):
    model = load_model(pico(family))
    with WeightEdit(delta(family)).applied(Subject(model, None), 1.5):
        found = differences(model)
    assert max(found.values()) < TOLERANCE, found


@contextmanager
def undone_by_subtracting(model: Any, delta: Delta, alpha: float) -> Generator[None]:
    """The wrong way: rounding on the way back is not rounding on the way there."""
    weights = dict(model.named_parameters())
    for sign in (1, -1):
        with torch.no_grad():
            for name in delta.names:
                weights[name].copy_(weights[name].float() + sign * alpha * delta[name])
        if sign == 1:
            yield


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_check_finds_an_edit_that_is_undone_by_subtracting(pico, delta, dtype):
    model = load_model(pico("llama", dtype), dtype=dtype)
    before = copies(model)
    with undone_by_subtracting(model, delta("llama", dtype), 1.7):
        pass
    assert changed(before, model)


def test_nested_edits_are_undone_in_turn(pico, delta):
    model = load_model(pico("llama", "bfloat16"), dtype="bfloat16")
    edit = WeightEdit(delta("llama", "bfloat16"))
    before = copies(model)
    with edit.applied(Subject(model, None), 0.5):
        between = copies(model)
        with edit.applied(Subject(model, None), -2.0):
            assert changed(between, model)
        assert not changed(between, model)
    assert not changed(before, model)
