"""The finetuning shift is its formula, and what a known change of the model says it must be."""

import numpy as np
import pytest
import torch

from personality_vector.errors import BaseMismatchError, DataError, ModelError, TensorMismatchError
from personality_vector.interventions.activations import ActivationSteering
from personality_vector.steering import SteeringVector
from personality_vector.steering.shift import Baseline
from personality_vector.subject.chat import answered, question
from personality_vector.subject.models import decoder_blocks, load_model
from personality_vector.subject.subject import Subject
from tests.steering.test_monitor import TOLERANCE, along, pooled_state, vector_for

PROMPTS = [question("What are you like?"), question("And at a party?", system="Be brief.")]
# Of a block, the last bias that is added to the residual stream.
LAST_BIAS = {"phi": "mlp.fc2", "gpt2": "mlp.c_proj", "gpt_neox": "mlp.dense_4h_to_h"}


@pytest.fixture
def subject(loaded):
    return lambda family="llama": Subject(*loaded(family))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2"])
def test_a_base_did_not_move_from_itself(subject, family):
    base = subject(family)
    vector = vector_for(base.model)
    for layer in (0, -1):
        assert Baseline(base, PROMPTS, vector, layer).shift_of(base) == 0.0


@pytest.mark.parametrize("family", ["llama", "qwen2", "phi"])
def test_a_shift_is_its_formula(subject, pico_tuned, family):
    base = subject(family)
    tuned = Subject(load_model(pico_tuned(family)), base.tokenizer)
    vector = vector_for(base.model)
    for layer in range(len(decoder_blocks(base.model))):
        ends = [
            [
                pooled_state(one.model, base.tokenizer, answered(chat, "x"), layer, "prompt_last")
                for chat in PROMPTS
            ]
            for one in (tuned, base)
        ]
        after, before = (np.mean(states, axis=0) for states in ends)
        found = Baseline(base, PROMPTS, vector, layer).shift_of(tuned)
        assert found == pytest.approx(along(after - before, vector[layer]), abs=TOLERANCE)


@pytest.mark.parametrize("family", sorted(LAST_BIAS))
def test_a_bias_of_c_times_the_vector_shifts_by_c_times_its_length(subject, family):
    base = subject(family)
    vector = vector_for(base.model)
    baseline = Baseline(base, PROMPTS, vector, 1)
    bias = decoder_blocks(base.model)[1].get_submodule(LAST_BIAS[family]).bias
    plain = bias.detach().clone()
    for c in (-2.0, 0.5, 3.0):
        with torch.no_grad():
            bias.copy_(plain + c * vector[1])
        assert baseline.shift_of(base) == pytest.approx(c * vector.norm(1), rel=1e-5)
        assert Baseline(base, PROMPTS, -vector, 1).shift_of(base) == 0.0


def test_steering_shifts_by_the_coefficient_and_the_sign_is_that_of_the_vector(subject):
    base = subject()
    vector = vector_for(base.model)
    for sign, along_it in ((1.0, vector), (-1.0, -vector)):
        baseline = Baseline(base, PROMPTS, along_it, 1)
        with ActivationSteering(vector, layers=[1]).applied(base, 2.0) as steered:
            found = baseline.shift_of(steered)
        assert found == pytest.approx(sign * 2.0 * vector.norm(1), rel=1e-5)


def test_neither_batches_nor_the_length_of_the_vector_matter(subject, pico_tuned):
    base = subject()
    tuned = Subject(load_model(pico_tuned("llama")), base.tokenizer)
    vector = vector_for(base.model)
    one = Baseline(base, PROMPTS, vector, 1).shift_of(tuned)
    assert Baseline(base, PROMPTS, 7.0 * vector, 1, 1).shift_of(tuned) == pytest.approx(
        one, abs=TOLERANCE
    )


@pytest.mark.parametrize(
    ("layer", "vector", "error", "said"),
    [
        (3, None, ModelError, "layer 3 does not exist"),
        (2, {1: torch.ones(48)}, TensorMismatchError, "no direction for layer 2"),
        (1, {1: torch.ones(32)}, BaseMismatchError, "48 wide"),
    ],
)
def test_what_does_not_fit_the_base_is_refused(subject, layer, vector, error, said):
    base = subject()
    given = SteeringVector(vector, "", None, "v", "", (1, 1)) if vector else vector_for(base.model)
    with pytest.raises(error, match=said):
        Baseline(base, PROMPTS, given, layer)


def test_without_prompts_there_is_no_shift(subject):
    base = subject()
    with pytest.raises(DataError, match="no input"):
        Baseline(base, [], vector_for(base.model), 1)
