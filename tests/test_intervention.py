"""Interventions: one protocol, three kinds, and what each refuses."""

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from personality_vector.adjectives import ADJECTIVES
from personality_vector.chat import question, render
from personality_vector.checkpoint import Checkpoint
from personality_vector.delta import Delta
from personality_vector.errors import (
    BaseMismatchError,
    DataError,
    ModelError,
    NonFiniteError,
    RecipeError,
    TensorMismatchError,
    TraitError,
)
from personality_vector.intervention import (
    ActivationSteering,
    Intervention,
    Prompted,
    WeightEdit,
)
from personality_vector.models import decoder_blocks, load_model, load_tokenizer
from personality_vector.rng import generator_for
from personality_vector.steering import SteeringVector
from personality_vector.traits import BIG_FIVE_POLES, Pole

FAMILIES = ("llama", "qwen2", "gemma2", "gpt_neox", "phi")
HIGH = Pole("extraversion", "high")


@dataclass
class Tensors:
    """A delta's tensors from a dict."""

    tensors: dict[str, Tensor]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.tensors))

    @property
    def inputs(self) -> tuple[Any, ...]:
        return ()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def part(self, name: str, part: slice) -> Tensor:
        return self.tensors[name].reshape(-1)[part].double()

    def tuned_part(self, _name: str, _part: slice, _base: Tensor) -> None:
        return None

    def require_unchanged(self) -> None:
        pass


def vector(layers: Any = (0, 1, 2), width: int = 48) -> SteeringVector:
    directions = {
        layer: torch.randn(width, generator=generator_for(layer, "vector")) for layer in layers
    }
    return SteeringVector(directions, "", HIGH, "loud", "response_mean", (1, 1))


@pytest.fixture
def edit_of(pico):
    """Return ``edit_of(family, tensors)``: an edit of some tensors of a pico model."""

    def make(family: str, tensors: dict[str, Tensor]) -> WeightEdit:
        base = Checkpoint.open(pico(family))
        return WeightEdit(Delta(Tensors(tensors), base.fingerprint, "0", "mine"))

    return make


@pytest.fixture
def llama(pico):
    return load_model(pico("llama"))


def states(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def test_all_three_are_interventions_and_have_labels(pico, pico_tuned):
    delta = Delta.between(pico("llama"), pico_tuned("llama"), label="tuned")
    kinds = [WeightEdit(delta), ActivationSteering(vector(), [1]), Prompted(HIGH)]
    assert all(isinstance(kind, Intervention) for kind in kinds)
    assert [kind.label for kind in kinds] == ["tuned", "loud", "prompt extraversion:high"]
    assert [replace(kind, label="x").label for kind in kinds] == ["x", "x", "x"]


def test_strength_zero_of_all_three_is_the_model_as_it_was(pico, pico_tuned, llama):
    delta = Delta.between(pico("llama"), pico_tuned("llama"))
    tokens, chat = torch.arange(5, 25)[None], question("Who are you?")
    with torch.no_grad():
        plain = llama(tokens).logits
        for kind in (WeightEdit(delta), ActivationSteering(vector(), [1]), Prompted(HIGH)):
            with kind.applied(llama, 0.0) as edit:
                assert edit(chat) == chat
                assert torch.equal(llama(tokens).logits, plain)


# --- weights ---


def test_an_edit_of_one_tensor_touches_no_other(llama, edit_of):
    name = "model.layers.1.mlp.up_proj.weight"
    before, change = states(llama), torch.ones(80, 48)
    with edit_of("llama", {name: change}).applied(llama, 0.25):
        after = states(llama)
    assert {key for key in before if not torch.equal(before[key], after[key])} == {name}
    assert torch.equal(after[name], before[name] + 0.25)
    assert torch.equal(change, torch.ones(80, 48))


def test_the_head_of_gpt_neox_is_found_under_its_name_on_disk(pico, edit_of):
    """On disk it is ``embed_out``, in the memory of transformers 5 ``lm_head``."""
    model = load_model(pico("gpt_neox"))
    assert "embed_out.weight" in Checkpoint.open(pico("gpt_neox")).names
    before = model.lm_head.weight.detach().clone()
    with edit_of("gpt_neox", {"embed_out.weight": torch.ones(300, 48)}).applied(model, 1.0):
        assert torch.equal(model.lm_head.weight, before + 1)
    assert torch.equal(model.lm_head.weight, before)


@pytest.mark.parametrize("family", ["qwen2", "gemma2"])
def test_tied_parameters_are_edited_once(pico, edit_of, family):
    model = load_model(pico(family))
    ones = torch.ones(300, 48)
    both = {"lm_head.weight": ones, "model.embed_tokens.weight": ones}
    before = states(model)
    with (
        pytest.raises(TensorMismatchError, match=r"embed_tokens.*one tied parameter"),
        edit_of(family, {**both, "lm_head.weight": 2 * ones}).applied(model, 1.0),
    ):
        pytest.fail("the body must not run")
    for given in (both, *({name: ones} for name in both)):
        with edit_of(family, given).applied(model, 1.0):
            assert torch.equal(model.lm_head.weight, before["lm_head.weight"] + 1)
    assert all(torch.equal(value, before[name]) for name, value in states(model).items())


def test_untied_parameters_are_edited_apart(llama, edit_of):
    ones = torch.ones(300, 48)
    both = {"lm_head.weight": ones, "model.embed_tokens.weight": 2 * ones}
    before = states(llama)
    with edit_of("llama", both).applied(llama, 1.0):
        assert torch.equal(llama.lm_head.weight, before["lm_head.weight"] + 1)
        assert torch.equal(llama.model.embed_tokens.weight, before["model.embed_tokens.weight"] + 2)


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


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -float("inf")])
def test_a_strength_must_be_finite(llama, edit_of, strength):
    edit = edit_of("llama", {"model.norm.weight": torch.ones(48)})
    for kind in (edit, ActivationSteering(vector(), [0]), Prompted(HIGH)):
        with pytest.raises(NonFiniteError), kind.applied(llama, strength):
            pytest.fail("the body must not run")


def test_weights_that_overflow_are_refused_and_restored(pico, edit_of):
    model = load_model(pico("llama"), dtype="float16")
    before = states(model)
    edit = edit_of("llama", {"model.norm.weight": torch.ones(48)})
    with pytest.raises(NonFiniteError, match="float16") as caught, edit.applied(model, 1e5):
        pytest.fail("the body must not run")
    assert caught.value.__notes__ == ["while at tensor model.norm.weight, alpha 100000.0"]
    assert all(torch.equal(value, before[name]) for name, value in states(model).items())


def test_parameters_stay_the_same_objects_and_keep_no_gradient(llama, edit_of):
    before = dict(llama.named_parameters())
    with edit_of("llama", {"model.norm.weight": torch.ones(48)}).applied(llama, 1.0):
        assert all(before[name] is value for name, value in llama.named_parameters())
        assert torch.is_grad_enabled()
        assert llama.model.norm.weight.requires_grad
        assert llama.model.norm.weight.grad_fn is None


# --- activations ---


def test_negative_layers_are_resolved_against_the_model(llama):
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        with ActivationSteering(vector(), [-1, 0]).applied(llama, 2.0):
            hooked = [bool(block._forward_hooks) for block in decoder_blocks(llama)]
            negative = llama(tokens).logits
        with ActivationSteering(vector(), [0, 2]).applied(llama, 2.0):
            assert torch.equal(llama(tokens).logits, negative)
    assert hooked == [True, False, True]


def test_the_coefficient_scales_the_direction(llama):
    seen = []
    for coefficient in (0.0, -1.5):
        with torch.no_grad(), ActivationSteering(vector(), [2]).applied(llama, coefficient):
            handle = decoder_blocks(llama)[2].register_forward_hook(
                lambda _block, _args, output: seen.append(output)
            )
            llama(torch.arange(5, 25)[None])
            handle.remove()
    assert torch.equal(seen[0] + -1.5 * vector()[2], seen[1])


@pytest.mark.parametrize(
    ("steering", "error", "message"),
    [
        (ActivationSteering(vector(), [0, 3]), ModelError, "layer 3 does not exist"),
        (ActivationSteering(vector(), [2, -1]), DataError, "same block twice"),
        (ActivationSteering(vector(), []), DataError, "no layer"),
        (ActivationSteering(vector([0]), [1]), TensorMismatchError, "no direction for layer 1"),
        (ActivationSteering(vector(width=47), [1]), BaseMismatchError, "48 wide"),
    ],
)
@pytest.mark.parametrize("coefficient", [0.0, 1.0])
def test_steering_that_does_not_fit_is_refused(llama, steering, error, message, coefficient):
    with pytest.raises(error, match=message), steering.applied(llama, coefficient):
        pytest.fail("the body must not run")
    assert not any(block._forward_hooks for block in decoder_blocks(llama))


# --- prompts ---


@pytest.mark.parametrize(
    ("strength", "sentence"),
    [
        (3.0, "You are very friendly, talkative and bold."),
        (2.0, "You are friendly, talkative and bold."),
        (1.0, "You are a bit friendly, talkative and bold."),
        (0.0, ""),
        (-1.0, "You are a bit unfriendly, silent and timid."),
        (-2.0, "You are unfriendly, silent and timid."),
        (-3.0, "You are very unfriendly, silent and timid."),
        (0.49, ""),
        (-0.49, ""),
        (0.5, "You are a bit friendly, talkative and bold."),
        (-0.5, "You are a bit unfriendly, silent and timid."),
        (1.5, "You are friendly, talkative and bold."),
        (2.5, "You are very friendly, talkative and bold."),
    ],
)
def test_strength_picks_the_grade_and_its_sign_the_pole(strength, sentence):
    assert Prompted(HIGH).sentence(strength) == sentence
    assert Prompted(HIGH.opposite).sentence(-strength) == sentence


@pytest.mark.parametrize("pole", BIG_FIVE_POLES, ids=str)
def test_every_pole_has_three_adjectives_of_its_own_side(pole):
    said = Prompted(pole).sentence(2.0)
    words = said.removeprefix("You are ").removesuffix(".").replace(" and ", ", ").split(", ")
    own = [pair[pole.level == "high"] for pair in ADJECTIVES[pole.trait]]
    assert len(words) == 3
    assert set(words) <= set(own)
    assert pole.trait[:5] not in said


@pytest.mark.parametrize("strength", [3.01, -3.01, 100.0])
def test_beyond_very_is_refused(strength):
    with (
        pytest.raises(RecipeError, match=r"from -3 .* to 3"),
        Prompted(HIGH).applied(None, strength),
    ):
        pytest.fail("the body must not run")


def test_a_trait_without_adjectives_is_refused():
    with pytest.raises(TraitError, match="creativity has no adjectives"):
        Prompted(Pole("creativity", "high"))


def test_the_sentence_becomes_or_precedes_the_system_message():
    bare, led = question("Who are you?"), question("Who are you?", system="Be brief.")
    with Prompted(HIGH).applied(None, 2.0) as edit:
        assert edit(bare)[0] == {
            "role": "system",
            "content": "You are friendly, talkative and bold.",
        }
        assert edit(led)[0]["content"] == "You are friendly, talkative and bold. Be brief."
        assert edit(bare)[1:] == bare
        assert edit(led)[1:] == led[1:]
    assert led == question("Who are you?", system="Be brief.")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompted_chat_can_be_rendered(pico, family):
    tokenizer = load_tokenizer(pico(family))
    with Prompted(HIGH).applied(None, -3.0) as edit:
        text = render(tokenizer, edit(question("Hi")), reply_follows=True)
    assert text.startswith("<|system|>You are very unfriendly, silent and timid.<|end|><|user|>Hi")
