"""A steering vector as an intervention: its layers, its coefficient, what it refuses."""

import pytest
import torch

from personality_vector.errors import (
    BaseMismatchError,
    DataError,
    ModelError,
    TensorMismatchError,
)
from personality_vector.interventions.activations import ActivationSteering
from personality_vector.numeric.random import generator_for
from personality_vector.steering import SteeringVector
from personality_vector.subject.models import decoder_blocks


def vector(layers=(0, 1, 2), width=48):
    directions = {
        layer: torch.randn(width, generator=generator_for(layer, "vector")) for layer in layers
    }
    return SteeringVector(directions, "", None, "loud", "response_mean", (1, 1))


def test_negative_layers_are_resolved_against_the_model(llama):
    tokens = torch.arange(5, 25)[None]
    with torch.no_grad():
        with ActivationSteering(vector(), [-1, 0]).applied(llama, 2.0):
            hooked = [bool(block._forward_hooks) for block in decoder_blocks(llama.model)]
            negative = llama.model(tokens).logits
        with ActivationSteering(vector(), [0, 2]).applied(llama, 2.0):
            assert torch.equal(llama.model(tokens).logits, negative)
    assert hooked == [True, False, True]


def test_the_coefficient_scales_the_direction(llama):
    seen = []
    for coefficient in (0.0, -1.5):
        with torch.no_grad(), ActivationSteering(vector(), [2]).applied(llama, coefficient):
            handle = decoder_blocks(llama.model)[2].register_forward_hook(
                lambda _block, _args, output: seen.append(output)
            )
            llama.model(torch.arange(5, 25)[None])
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
    assert not any(block._forward_hooks for block in decoder_blocks(llama.model))
