"""Interventions: one protocol, and what every kind owes it."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from personality_vector.checkpoint import Checkpoint
from personality_vector.delta import Delta
from personality_vector.errors import NonFiniteError, RecipeError
from personality_vector.interventions.activations import ActivationSteering, NeuronSteering
from personality_vector.interventions.decoding import Decoding
from personality_vector.interventions.discussion import Discussion
from personality_vector.interventions.portraits import Portrait, Prompted
from personality_vector.interventions.prompts import FewShot, RolePrompt, SystemPrompt
from personality_vector.interventions.spec import KINDS, require_step
from personality_vector.interventions.twins import TwinPrompts
from personality_vector.interventions.weights import HybridEdit, WeightEdit
from personality_vector.numeric.random import generator_for
from personality_vector.steering import SteeringVector
from personality_vector.subject.chat import answered, question
from personality_vector.subject.prompts import Prompts, reading
from personality_vector.subject.protocols import Intervention
from personality_vector.traits import Pole

HIGH = Pole("extraversion", "high")
CHANGES = {
    "weights": "model",
    "activations": "model",
    "hybrid": "model",
    "neurons": "model",
    "adjectives": "chat",
    "portrait": "chat",
    "roles": "chat",
    "system": "chat",
    "examples": "chat",
    "twins": "chat",
    "decoding": "decoding",
    "discussion": "exchange",
}
TOKENS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module", params=CHANGES)
def kind(request, pico, pico_tuned, neurons_of):
    """Return one intervention of each kind, all on pico llama, and what it changes."""
    drawn = {1: torch.randn(48, generator=generator_for(1, "vector"))}
    loud = SteeringVector(drawn, "", HIGH, "loud", "response_mean", (1, 1))
    delta = Delta.between(pico("llama"), pico_tuned("llama"), label="tuned")
    kinds = {
        "weights": lambda: WeightEdit(delta),
        "activations": lambda: ActivationSteering(loud, [1]),
        "hybrid": lambda: HybridEdit(delta + loud),
        "neurons": lambda: NeuronSteering(neurons_of("llama")),
        "adjectives": lambda: Prompted(HIGH),
        "portrait": lambda: Portrait(HIGH),
        "roles": lambda: RolePrompt(["a futurist", "a cook"]),
        "system": lambda: SystemPrompt("You love a party."),
        "examples": lambda: FewShot([answered(question("Hi"), "Hello! What a day!")]),
        "twins": lambda: TwinPrompts({"Who are you?": "What is the time?"}),
        "decoding": lambda: Decoding(temperature=0.0),
        "discussion": lambda: Discussion(["a futurist", "a cook"]),
    }
    return kinds[request.param](), CHANGES[request.param]


def logits_of(subject):
    with torch.no_grad(), reading(Prompts.of(TOKENS, ends=[8])):
        return subject.model(TOKENS).logits


def test_each_is_an_intervention_and_takes_a_label(kind):
    assert isinstance(kind[0], Intervention)
    assert replace(kind[0], label="x").label == "x"


def test_an_identity_knows_everything_but_the_label(kind):
    one, _ = kind
    assert one.identity() == replace(one).identity() == replace(one, label="x").identity()
    assert len(one.identity()) == 32


def test_each_accepts_the_base_that_it_is_of(kind, pico):
    kind[0].check(Checkpoint.open(pico("llama")))


def test_strength_zero_is_the_subject_as_it_was(kind, llama):
    plain = logits_of(llama)
    with kind[0].applied(llama, 0.0) as asked:
        assert replace(asked, realised=None) is asked or asked.model is llama.model
        assert (asked.edit, asked.decoding) == (llama.edit, llama.decoding)
        assert asked.exchange is llama.exchange
        assert torch.equal(logits_of(asked), plain)
        assert not any(module._forward_hooks for module in llama.model.modules())


def test_strength_one_changes_one_thing(kind, llama):
    chat, plain = question("Who are you?"), logits_of(llama)
    with kind[0].applied(llama, 1.0) as asked:
        changed = {
            "model": not torch.allclose(logits_of(asked), plain, atol=1e-3),
            "chat": asked.edit(chat) != chat,
            "decoding": asked.decoding != llama.decoding,
            "exchange": asked.exchange != llama.exchange,
        }
        assert (asked.realised is not None) == isinstance(kind[0], WeightEdit | HybridEdit)
    assert [what for what, is_changed in changed.items() if is_changed] == [kind[1]]


def test_it_is_taken_back_after_an_exception(kind, llama):
    plain = logits_of(llama)
    with pytest.raises(KeyError), kind[0].applied(llama, 1.0):
        raise KeyError
    assert torch.equal(logits_of(llama), plain)
    assert not any(module._forward_hooks for module in llama.model.modules())


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -float("inf")])
def test_a_strength_must_be_finite(kind, llama, strength):
    with pytest.raises(NonFiniteError), kind[0].applied(llama, strength):
        pytest.fail("the body must not run")
    with pytest.raises(NonFiniteError):
        require_step(kind[0], strength)


def test_a_strength_that_is_no_step_is_refused_with_the_steps(kind, llama):
    one, changes = kind
    if one.steps is None:
        assert changes == "model"
        require_step(one, 0.37)
        return
    assert 0 in one.steps
    for step in one.steps:
        require_step(one, step)
    for strength in (0.5, 77.0):
        message = rf"^{re.escape(one.label)}: has the strengths .*0.* and \d, got {strength:g}$"
        with pytest.raises(RecipeError, match=message), one.applied(llama, strength):
            pytest.fail("the body must not run")


def test_nested_ones_all_act(llama, pico, pico_tuned):
    shot = answered(question("Hi"), "Hello! What a day!")
    delta = Delta.between(pico("llama"), pico_tuned("llama"))
    with (
        WeightEdit(delta).applied(llama, 1.0) as first,
        SystemPrompt("You love a party.").applied(first, 1.0) as second,
        FewShot([shot]).applied(second, 1.0) as third,
        Decoding(top_p=0.5).applied(third, 1.0) as fourth,
        Decoding(temperature=0.0).applied(fourth, 1.0) as asked,
    ):
        chat = asked.edit(question("Who are you?", system="Be brief."))
        assert [message["role"] for message in chat] == ["system", "user", "assistant", "user"]
        assert chat[0]["content"] == "You love a party. Be brief."
        assert asked.decoding == {"top_p": 0.5, "temperature": 0.0}
        assert asked.realised == pytest.approx(1.0)


def test_no_schema_of_an_intervention_imports_torch():
    code = (
        "import sys\n"
        "from personality_vector.interventions.spec import KINDS\n"
        "from personality_vector.recipes.schema import schema_of\n"
        "print([schema_of(KINDS, key).__name__ for key in KINDS], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
    assert done.stdout.count("Spec") == len(KINDS)
