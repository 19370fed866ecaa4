"""Hybrids: one sum of a delta and a steering vector, live by hooks or written as a bias."""

from dataclasses import replace

import pytest
import torch

from personality_vector import merge
from personality_vector.checkpoint import Checkpoint
from personality_vector.delta import Delta
from personality_vector.errors import (
    BaseMismatchError,
    ModelError,
    NonFiniteError,
    TensorMismatchError,
)
from personality_vector.interventions.activations import ActivationSteering
from personality_vector.interventions.weights import HybridEdit, WeightEdit
from personality_vector.numeric.random import generator_for
from personality_vector.steering import SteeringVector
from personality_vector.steering.bake import bake, baking
from personality_vector.steering.bake.proof import Proof, load_export
from personality_vector.steering.hybrid import Hybrid
from personality_vector.subject.models import decoder_blocks, hidden_size
from personality_vector.subject.subject import Subject

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed"),
]
FAMILIES = ("llama", "qwen2", "phi", "gpt2", "gpt_neox", "mistral")
REFUSED = ("gemma2", "olmo2", "gemma3_text", "mixtral")
IDS = torch.arange(7, 47).reshape(2, 20) * 11 % 300
TOLERANCE = 1e-5  # float32; logits have a standard deviation of about 2


@pytest.fixture
def parts(pico, pico_tuned):
    """Return ``parts(family)``: a delta and a vector of a pico model, of its first two layers."""

    def make(family):
        delta = Delta.between(pico(family), pico_tuned(family), label="tuned")
        width = hidden_size(Subject.load(str(pico(family)), device="cpu").model)
        drawn = {i: torch.randn(width, generator=generator_for(i, "vector")) for i in range(2)}
        model = delta.base.digest
        return delta, SteeringVector(drawn, model, None, "loud", "response_mean", (1, 1))

    return make


@torch.no_grad()
def logits_of(model):
    return model(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_edit_of_weights_and_the_hooks_and_is_taken_back(family, pico, parts):
    delta, vector = parts(family)
    subject = Subject.load(str(pico(family)), device="cpu")
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    plain = logits_of(subject.model)
    weights, hooks = WeightEdit(1.4 * delta), ActivationSteering(0.7 * vector, [0, 1])
    with weights.applied(subject, 0.5) as inner, hooks.applied(inner, 0.5) as both:
        expected = logits_of(both.model)
    edit = HybridEdit(1.4 * delta + 0.7 * vector)
    edit.check(Checkpoint.open(pico(family)))
    with edit.applied(subject, 0.5) as asked:
        torch.testing.assert_close(logits_of(asked.model), expected, atol=TOLERANCE, rtol=0)
        assert asked.realised == pytest.approx(1.0, abs=1e-3)
    assert (expected - plain).abs().max() > 0.1
    assert not any(block._forward_hooks for block in decoder_blocks(subject.model))
    assert torch.equal(logits_of(subject.model), plain)
    assert all(torch.equal(v, before[name]) for name, v in subject.model.state_dict().items())


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_checkpoint_of_a_merge_with_the_vector_baked_in(
    family, pico, parts, tmp_path, monkeypatch
):
    """Nothing is proved by a new process here: that is for the tests of baking."""
    proved = Proof(0.0, 0.0, 0.0, 1.0, 1.0, "float32", (1, 1), 1)
    monkeypatch.setattr(baking, "prove", lambda *_: proved)
    delta, vector = parts(family)
    path = merge(pico(family), [(delta, 0.7)], out=tmp_path / "merged").path
    done = bake(replace(vector, model=""), path, [0, 1], 0.7, tmp_path / "baked")
    is_adapter = done.route == "adapter"
    given = (str(path), str(done.path)) if is_adapter else (str(done.path), "")
    expected = logits_of(load_export(*given, "float32"))
    subject = Subject.load(str(pico(family)), device="cpu")
    with HybridEdit(delta + vector).applied(subject, 0.7) as asked:
        torch.testing.assert_close(logits_of(asked.model), expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("family", REFUSED)
def test_an_architecture_without_a_place_for_the_vector_is_named(family, pico, parts):
    delta, vector = parts(family)
    subject = Subject.load(str(pico(family)), device="cpu")
    edit, plain = HybridEdit(delta + vector), logits_of(subject.model)
    message = rf"^{family}: its (blocks normalise|MLP is a mixture).*; steer it with a hook$"
    with pytest.raises(ModelError, match=message):
        edit.check(Checkpoint.open(pico(family)))
    with pytest.raises(ModelError, match=message), edit.applied(subject, 1.0):
        pytest.fail("the body must not run")
    assert torch.equal(logits_of(subject.model), plain)


@pytest.mark.parametrize(
    ("combined", "weights", "directions"),
    [
        (lambda d, v: d + v, 1, 1),
        (lambda d, v: v + d, 1, 1),
        (lambda d, v: d - v, 1, -1),
        (lambda d, v: v - d, -1, 1),
        (lambda d, v: 3.0 * (d + v), 3, 3),
        (lambda d, v: (d - v) * -0.5, -0.5, 0.5),
        (lambda d, v: -(d + v) / 4.0, -0.25, -0.25),
        (lambda d, v: d + v + d, 2, 1),
        (lambda d, v: d + (d + v), 2, 1),
        (lambda d, v: v + (d + v), 1, 2),
        (lambda d, v: (d + v) + v, 1, 2),
        (lambda d, v: v - (d + 3.0 * v), -1, -2),
        (lambda d, v: (d + 3.0 * v) - v, 1, 2),
        (lambda d, v: (d + v) + (d + v), 2, 2),
        (lambda d, v: 2.0 * (d + 2.0 * v) - (d + v), 1, 3),
    ],
)
def test_the_algebra_is_that_of_the_two(parts, combined, weights, directions):
    delta, vector = parts("llama")
    found = combined(delta, vector)
    assert isinstance(found, Hybrid)
    name = "model.layers.1.mlp.up_proj.weight"
    torch.testing.assert_close(found.delta[name], weights * delta[name])
    torch.testing.assert_close(found.vector[1], directions * vector[1])


def test_its_identity_is_that_of_both_parts(parts):
    delta, vector = parts("llama")
    sums = [delta + vector, delta + 2.0 * vector, 2.0 * delta + vector, delta + vector.at(1)]
    assert len({HybridEdit(one).identity() for one in sums}) == 4
    assert HybridEdit(delta + vector).identity() == HybridEdit(vector + delta, "x").identity()


def test_what_cannot_be_added_is_refused(parts):
    delta, vector = parts("llama")
    with pytest.raises(BaseMismatchError, match=r"^tuned is of base .* and loud of model 0000"):
        delta + replace(vector, model="0" * 32)
    with pytest.raises(TensorMismatchError, match="no direction for layer 2"):
        delta + vector.at(2)
    with pytest.raises(NonFiniteError):
        (delta + vector) * float("nan")
    for other in (1.0, "x"):
        with pytest.raises(TypeError):
            delta + other
        with pytest.raises(TypeError):
            vector + other
        with pytest.raises(TypeError):
            vector - other
        with pytest.raises(TypeError):
            (delta + vector) + other
