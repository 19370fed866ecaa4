"""Interventions: one protocol, and what every kind owes it."""

from dataclasses import replace

import pytest
import torch
from personality_vector.interventions.system_prompt import SystemPrompt

from personality_vector.delta import Delta
from personality_vector.errors import NonFiniteError
from personality_vector.interventions.activations import ActivationSteering
from personality_vector.interventions.neurons import NeuronSteering
from personality_vector.interventions.portrait import Portrait
from personality_vector.interventions.prompted import Prompted
from personality_vector.interventions.roles import RolePrompt, SingleAgent
from personality_vector.interventions.weights import WeightEdit
from personality_vector.numeric.random import generator_for
from personality_vector.steering import SteeringVector
from personality_vector.subject.chat import question
from personality_vector.subject.prompts import Prompts, reading
from personality_vector.subject.protocols import Intervention
from personality_vector.traits import Pole

HIGH = Pole("extraversion", "high")
LABELS = {
    "tuned": "weights",
    "loud": "activations",
    "extraversion:high": "neurons",
    "prompt extraversion:high": "adjectives",
    "portrait extraversion:high": "portrait",
    "roles a futurist + a cook": "roles",
    "single agent": "single",
}
TOKENS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module", params=LABELS, ids=list(LABELS.values()))
def kind(request, pico, pico_tuned, neurons_of):
    """Return one intervention of each kind, all on pico llama."""
    drawn = {1: torch.randn(48, generator=generator_for(1, "vector"))}
    loud = SteeringVector(drawn, "", HIGH, "loud", "response_mean", (1, 1))
    kinds = [
        WeightEdit(Delta.between(pico("llama"), pico_tuned("llama"), label="tuned")),
        ActivationSteering(loud, [1]),
        NeuronSteering(neurons_of("llama")),
        Prompted(HIGH),
        Portrait(HIGH),
        RolePrompt(["a futurist", "a cook"]),
        SingleAgent(),
    ]
    return {kind.label: kind for kind in kinds}[request.param]


def logits_of(model):
    with torch.no_grad(), reading(Prompts.of(TOKENS, ends=[8])):
        return model(TOKENS).logits


def test_each_is_an_intervention_and_takes_a_label(kind):
    assert isinstance(kind, Intervention)
    assert replace(kind, label="x").label == "x"


def test_strength_zero_is_the_model_as_it_was(kind, llama):
    chat, plain = question("Who are you?"), logits_of(llama)
    with kind.applied(llama, 0.0) as edit:
        assert edit(chat) == chat
        assert torch.equal(logits_of(llama), plain)
        assert not any(module._forward_hooks for module in llama.modules())


def test_strength_one_changes_the_model_or_the_chat_but_not_of_the_single_agent(kind, llama):
    chat, plain = question("Who are you?"), logits_of(llama)
    with kind.applied(llama, 1.0) as edit:
        is_changed = (edit(chat) != chat, not torch.allclose(logits_of(llama), plain, atol=1e-3))
    assert is_changed == (
        isinstance(kind, SystemPrompt) and not isinstance(kind, SingleAgent),
        not isinstance(kind, SystemPrompt),
    )


def test_it_is_taken_back_after_an_exception(kind, llama):
    plain = logits_of(llama)
    with pytest.raises(KeyError), kind.applied(llama, 1.0):
        raise KeyError
    assert torch.equal(logits_of(llama), plain)
    assert not any(module._forward_hooks for module in llama.modules())


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -float("inf")])
def test_a_strength_must_be_finite(kind, llama, strength):
    with pytest.raises(NonFiniteError), kind.applied(llama, strength):
        pytest.fail("the body must not run")
