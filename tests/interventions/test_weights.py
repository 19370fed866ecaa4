"""A delta in the live weights: what it touches, what it refuses, and that it is taken back."""

from typing import Any

import pytest
import torch
from torch import Tensor

from personality_vector.checkpoint import Checkpoint
from personality_vector.errors import NonFiniteError, TensorMismatchError
from personality_vector.subject.models import load_model
from personality_vector.subject.subject import Subject


def states(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def test_an_edit_of_one_tensor_touches_no_other(llama, edit_of):
    name = "model.layers.1.mlp.up_proj.weight"
    before, change = states(llama.model), torch.ones(80, 48)
    with edit_of("llama", {name: change}).applied(llama, 0.25):
        after = states(llama.model)
    assert {key for key in before if not torch.equal(before[key], after[key])} == {name}
    assert torch.equal(after[name], before[name] + 0.25)
    assert torch.equal(change, torch.ones(80, 48))


def test_the_head_of_gpt_neox_is_found_under_its_name_on_disk(pico, edit_of):
    """On disk it is ``embed_out``, in the memory of transformers 5 ``lm_head``."""
    model = load_model(pico("gpt_neox"))
    assert "embed_out.weight" in Checkpoint.open(pico("gpt_neox")).names
    before = model.lm_head.weight.detach().clone()
    with edit_of("gpt_neox", {"embed_out.weight": torch.ones(300, 48)}).applied(
        Subject(model, None), 1.0
    ):
        assert torch.equal(model.lm_head.weight, before + 1)
    assert torch.equal(model.lm_head.weight, before)


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_tied_parameters_are_edited_once_or_untied(pico, edit_of, family):
    model = load_model(pico(family))
    ones, head, table = torch.ones(300, 48), "lm_head.weight", "model.embed_tokens.weight"
    before = states(model)
    given = [
        ({head: ones, table: ones}, 1, 1),
        ({table: ones}, 1, 1),  # the head is this very parameter
        ({head: ones}, 1, 0),
        ({head: 2 * ones, table: ones}, 2, 1),
    ]
    for tensors, of_head, of_table in given:
        with edit_of(family, tensors).applied(Subject(model, None), 1.0):
            assert torch.equal(model.lm_head.weight, before[head] + of_head)
            assert torch.equal(model.model.embed_tokens.weight, before[table] + of_table)
        assert model.lm_head.weight is model.model.embed_tokens.weight
    assert all(torch.equal(value, before[name]) for name, value in states(model).items())


def test_untied_parameters_are_edited_apart(llama, edit_of):
    ones = torch.ones(300, 48)
    both = {"lm_head.weight": ones, "model.embed_tokens.weight": 2 * ones}
    before = states(llama.model)
    with edit_of("llama", both).applied(llama, 1.0):
        assert torch.equal(llama.model.lm_head.weight, before["lm_head.weight"] + 1)
        assert torch.equal(
            llama.model.model.embed_tokens.weight, before["model.embed_tokens.weight"] + 2
        )


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"model.layers.9.mlp.up_proj.weight": torch.ones(80, 48)}, "has no parameter model.lay"),
        ({"model.norm.weight": torch.ones(47)}, r"\[47\], in this model it is \[48\]"),
        ({"model.norm.weight": torch.ones(1, 48)}, r"\[1, 48\]"),
    ],
)
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_delta_that_does_not_fit_is_refused(llama, edit_of, tensors, message, strength):
    edit = edit_of("llama", tensors)
    with pytest.raises(TensorMismatchError, match=message), edit.applied(llama, strength):
        pytest.fail("the body must not run")


def test_weights_that_overflow_are_refused_and_restored(pico, edit_of):
    model = load_model(pico("llama"), dtype="float16")
    before = states(model)
    edit = edit_of("llama", {"model.norm.weight": torch.ones(48)})
    with (
        pytest.raises(NonFiniteError, match="float16") as caught,
        edit.applied(Subject(model, None), 1e5),
    ):
        pytest.fail("the body must not run")
    assert caught.value.__notes__ == ["while at tensor model.norm.weight, alpha 100000.0"]
    assert all(torch.equal(value, before[name]) for name, value in states(model).items())


def test_parameters_stay_the_same_objects_and_keep_no_gradient(llama, edit_of):
    before = dict(llama.model.named_parameters())
    with edit_of("llama", {"model.norm.weight": torch.ones(48)}).applied(llama, 1.0):
        assert all(before[name] is value for name, value in llama.model.named_parameters())
        assert torch.is_grad_enabled()
        assert llama.model.model.norm.weight.requires_grad
        assert llama.model.model.norm.weight.grad_fn is None
