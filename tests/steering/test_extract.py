"""Extraction equals its formula, computed the slow way, and reads what the blocks put out."""

from typing import Any

import pytest
import torch
from torch import Tensor

from personality_vector.chat import answered, encode_chats, question
from personality_vector.errors import DataError, ModelError, NonFiniteError
from personality_vector.models import decoder_blocks, load_model, load_tokenizer
from personality_vector.rng import generator_for
from personality_vector.steering import SteeringVector, steered
from personality_vector.steering.extract import mean_response_activations
from personality_vector.traits import Pole

FAMILIES = ("llama", "qwen2", "gemma2", "gpt_neox", "phi")
HIGH = Pole("extraversion", "high")

LOUD = [
    answered(question("What are you like?"), "I love meeting new people."),
    answered(question("And at a party?", system="Be brief."), "I talk."),
    answered(question("Hi"), "I am the one who talks at every party, and then I talk some more."),
]
QUIET = [
    answered(question("What are you like?"), "I am quiet."),
    answered(question("And at a party?"), "I go home é."),
]


@pytest.fixture
def loaded(pico):
    def load(family: str, dtype: str = "float32") -> tuple[Any, Any]:
        path = pico(family, dtype)
        return load_model(path, dtype=dtype), load_tokenizer(path)

    return load


@torch.no_grad()
def oracle(model: Any, tokenizer: Any, chats: Any, layer: int) -> Tensor:
    """Mean over chats of the mean over response tokens: one chat at a time, no padding."""
    means = []
    for chat in chats:
        encoded = encode_chats(tokenizer, [chat])
        seen: list[Tensor] = []
        handle = decoder_blocks(model)[layer].register_forward_hook(
            lambda _block, _args, output, seen=seen: seen.append(output)
        )
        out = model(encoded.input_ids, output_hidden_states=True)
        handle.remove()
        if layer + 1 < len(decoder_blocks(model)):
            assert torch.equal(seen[0], out.hidden_states[layer + 1])
        means.append(seen[0][0, encoded.response_mask[0]].double().mean(0))
    return torch.stack(means).mean(0)


@pytest.mark.parametrize("family", FAMILIES)
def test_extraction_is_the_difference_of_mean_response_activations(loaded, family):
    model, tokenizer = loaded(family)
    vector = SteeringVector.extract(model, tokenizer, LOUD, QUIET, pole=HIGH)
    assert vector.layers == tuple(range(len(decoder_blocks(model))))
    assert (vector.pole, vector.label, vector.counts) == (HIGH, "extraversion:high", (3, 2))
    for layer in vector.layers:
        plus, minus = (oracle(model, tokenizer, side, layer) for side in (LOUD, QUIET))
        assert vector[layer].dtype == torch.float32
        torch.testing.assert_close(vector[layer], (plus - minus).float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_and_choice_of_layers_do_not_matter(loaded, family):
    model, tokenizer = loaded(family)
    whole = SteeringVector.extract(model, tokenizer, LOUD, QUIET, batch_size=16)
    last = len(decoder_blocks(model)) - 1
    single = SteeringVector.extract(model, tokenizer, LOUD, QUIET, layers=[-1], batch_size=1)
    assert single.layers == (last,)
    torch.testing.assert_close(single[last], whole[last], rtol=0, atol=1e-5)


def test_swapping_the_sides_negates(loaded):
    model, tokenizer = loaded("qwen2")
    one = SteeringVector.extract(model, tokenizer, LOUD, QUIET)
    other = SteeringVector.extract(model, tokenizer, QUIET, LOUD)
    assert all(torch.equal(one[layer], -other[layer]) for layer in one.layers)


@pytest.mark.parametrize("family", FAMILIES)
def test_extraction_sees_steering_at_the_steered_layer(loaded, family):
    """``output_hidden_states`` would not: it records before a user's hook runs."""
    model, tokenizer = loaded(family)
    addition = 3 * torch.randn(48, generator=generator_for(0, "addition"))
    last = len(decoder_blocks(model)) - 1
    plain = mean_response_activations(model, tokenizer, LOUD, [last], 2)[last]
    with steered(model, {last: addition}):
        moved = mean_response_activations(model, tokenizer, LOUD, [last], 2)[last]
    torch.testing.assert_close(moved - plain, addition.double(), rtol=0, atol=1e-5)


def test_a_bfloat16_model_gives_nearly_the_same_direction(loaded):
    vectors = [
        SteeringVector.extract(*loaded("llama", dtype), LOUD, QUIET)
        for dtype in ("float32", "bfloat16")
    ]
    assert all(vectors[0].cosine(vectors[1], layer) > 0.999 for layer in vectors[0].layers)


@pytest.mark.parametrize(("sides", "which"), [(([], QUIET), "positive"), ((LOUD, []), "negative")])
def test_an_empty_side_is_refused_by_name(loaded, sides, which):
    with pytest.raises(DataError, match=f"no {which} chats"):
        SteeringVector.extract(*loaded("llama"), *sides)


def test_equal_sides_are_refused(loaded):
    with pytest.raises(DataError, match="layer 0: the direction is zero"):
        SteeringVector.extract(*loaded("llama"), LOUD, LOUD)


def test_a_model_that_yields_nan_is_refused(loaded):
    model, tokenizer = loaded("llama")
    with torch.no_grad():
        decoder_blocks(model)[1].mlp.down_proj.weight[3, 3] = float("nan")
    with pytest.raises(NonFiniteError, match="layer 1"):
        SteeringVector.extract(model, tokenizer, LOUD, QUIET)


def test_a_layer_that_is_not_there_is_refused(loaded):
    with pytest.raises(ModelError, match="layer 7"):
        SteeringVector.extract(*loaded("phi"), LOUD, QUIET, layers=[0, 7])


def test_hooks_are_gone_after_an_unusable_chat(loaded):
    model, tokenizer = loaded("llama")
    unanswered = [*LOUD, question("Are you there?")]
    with pytest.raises(DataError, match="must end with a message of the assistant"):
        SteeringVector.extract(model, tokenizer, unanswered, QUIET, batch_size=1)
    assert not any(block._forward_hooks for block in decoder_blocks(model))
