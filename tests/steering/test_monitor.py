"""What a monitor reads is what the blocks put out, steering included, one plain pass at a time."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from personality_vector.data.statements import read_statements
from personality_vector.delta import Delta
from personality_vector.errors import (
    BaseMismatchError,
    DataError,
    ModelError,
    NonFiniteError,
    TensorMismatchError,
)
from personality_vector.interventions.activations import ActivationSteering
from personality_vector.interventions.weights import WeightEdit
from personality_vector.numeric.random import generator_for
from personality_vector.steering import Positions, SteeringVector, steered
from personality_vector.steering.monitor import projections, unit_at
from personality_vector.subject.chat import answered, question, render
from personality_vector.subject.encoding import encode_chats
from personality_vector.subject.models import (
    decoder_blocks,
    hidden_size,
    load_model,
    load_tokenizer,
)
from personality_vector.subject.subject import Subject

FAMILIES = ("llama", "qwen2", "gemma2", "gpt_neox", "phi", "gpt2")
TOLERANCE = 1e-5

CHATS = [
    answered(question("What are you like?"), "I love meeting new people."),
    answered(question("And at a party?", system="Be brief."), "I talk."),
    answered(question("Hi"), "I am the one who talks at every party, and then I talk some more."),
]


def direction_for(model: Any, name: str = "direction", size: float = 3.0) -> Tensor:
    return size * torch.randn(hidden_size(model), generator=generator_for(0, name))


def vector_for(model: Any) -> SteeringVector:
    layers = range(len(decoder_blocks(model)))
    directions = {layer: direction_for(model, f"v {layer}") for layer in layers}
    return SteeringVector(directions, "", None, "v", "random", (1, 1))


@torch.no_grad()
def states(model: Any, ids: Tensor, layer: int) -> np.ndarray:
    """What a block puts out for one row, in one plain pass; the hook is the last of the block."""
    seen: list[Tensor] = []

    def record(_block: Any, _args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = decoder_blocks(model)[layer].register_forward_hook(record)
    model(ids[None])
    handle.remove()
    return seen[0][0].double().numpy()


def pooled_state(model: Any, tokenizer: Any, chat: Any, layer: int, pooling: str) -> np.ndarray:
    if pooling == "response_mean":
        encoded = encode_chats(tokenizer, [chat])
        return states(model, encoded.input_ids[0], layer)[encoded.response_mask[0]].mean(0)
    text = render(tokenizer, chat[:-1], reply_follows=True)
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    whole = states(model, ids, layer)
    return whole[-1] if pooling == "prompt_last" else whole.mean(0)


def along(state: np.ndarray, direction: Tensor) -> float:
    exact = direction.double().numpy()
    return float(state @ exact / np.linalg.norm(exact))


@pytest.mark.parametrize("pooling", ["response_mean", "prompt_last", "prompt_mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_projection_is_its_formula(loaded, family, pooling):
    model, tokenizer = loaded(family)
    vector = vector_for(model)
    for layer in (0, -1):
        place = layer % len(decoder_blocks(model))
        found = projections(model, tokenizer, CHATS, vector, layer, pooling)
        expected = [
            along(pooled_state(model, tokenizer, chat, place, pooling), vector[place])
            for chat in CHATS
        ]
        assert found.dtype == torch.float64
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_its_chats_one_by_one(loaded, family):
    model, tokenizer = loaded(family)
    vector = vector_for(model)
    whole = projections(model, tokenizer, CHATS, vector, 1)
    single = [projections(model, tokenizer, [chat], vector, 1, batch_size=1) for chat in CHATS]
    torch.testing.assert_close(whole, torch.cat(single), rtol=0, atol=TOLERANCE)


def test_the_length_of_a_vector_does_not_matter_and_its_sign_does(loaded):
    model, tokenizer = loaded()
    vector = vector_for(model)
    one = projections(model, tokenizer, CHATS, vector, 1)
    torch.testing.assert_close(projections(model, tokenizer, CHATS, vector * 7.0, 1), one)
    torch.testing.assert_close(projections(model, tokenizer, CHATS, -vector, 1), -one)


def test_before_the_reply_nothing_of_it_is_known(loaded):
    model, tokenizer = loaded()
    asked = [chat[:-1] for chat in CHATS]
    found = [
        projections(model, tokenizer, chats, vector_for(model), 1, "prompt_last")
        for chats in (CHATS, asked)
    ]
    assert torch.equal(*found)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_steered_layer_is_seen_and_hidden_states_miss_it(loaded, family):
    model, tokenizer = loaded(family)
    vector = vector_for(model)
    layer = 0
    ids = encode_chats(tokenizer, CHATS[:1]).input_ids

    def told() -> Tensor:
        """Return what ``output_hidden_states`` says of the output of the block."""
        with torch.no_grad():
            return model(ids, output_hidden_states=True).hidden_states[layer + 1]

    plain = projections(model, tokenizer, CHATS, vector, layer), told()
    with steered(model, {layer: vector[layer]}, 2.0):
        moved = projections(model, tokenizer, CHATS, vector, layer), told()
    torch.testing.assert_close(
        moved[0] - plain[0], torch.full((3,), 2 * vector.norm(layer)).double(), rtol=0, atol=1e-4
    )
    assert torch.equal(moved[1], plain[1])


def test_the_positions_of_steering_are_respected(loaded):
    model, tokenizer = loaded()
    vector = vector_for(model)
    response = Positions.parse("response")
    poolings = ("prompt_last", "response_mean")
    plain = [projections(model, tokenizer, CHATS, vector, 1, pooling) for pooling in poolings]
    with steered(model, {1: vector[1]}, 2.0, positions=response):
        moved = [projections(model, tokenizer, CHATS, vector, 1, pooling) for pooling in poolings]
    torch.testing.assert_close(moved[0], plain[0])
    assert (moved[1] - plain[1]).min() > vector.norm(1)


@pytest.mark.parametrize("pooling", ["prompt_last", "response_mean"])
def test_what_finetuning_moved_is_the_difference_of_the_projections(loaded, pico_tuned, pooling):
    base, tokenizer = loaded("qwen2")
    tuned = load_model(pico_tuned("qwen2"))
    vector = vector_for(base)
    means = [
        np.mean([pooled_state(model, tokenizer, chat, 1, pooling) for chat in CHATS], axis=0)
        for model in (base, tuned)
    ]
    expected = along(means[1] - means[0], vector[1])
    before, after = (
        projections(model, tokenizer, CHATS, vector, 1, pooling).mean() for model in (base, tuned)
    )
    assert float(after - before) == pytest.approx(expected, abs=TOLERANCE)
    assert abs(expected) > 100 * TOLERANCE
    shift = SteeringVector.between(base, tuned, tokenizer, CHATS, layers=[1], pooling=pooling)
    assert along(shift[1].double().numpy(), vector[1]) == pytest.approx(expected, abs=TOLERANCE)
    back = SteeringVector.between(tuned, base, tokenizer, CHATS, layers=[1], pooling=pooling)
    assert torch.equal(back[1], -shift[1])


def test_interventions_move_the_projections(loaded, pico, pico_tuned):
    """An edit of all the weights is the tuned model; steering moves its layer by its length."""
    base, tokenizer = loaded()
    vector = vector_for(base)

    def mean(model: Any) -> float:
        return float(projections(model, tokenizer, CHATS, vector, 1, "prompt_last").mean())

    plain, subject = mean(base), Subject(base, tokenizer)
    edit = WeightEdit(Delta.between(pico("llama"), pico_tuned("llama")))
    with edit.applied(subject, 1.0):
        assert mean(base) == pytest.approx(mean(load_model(pico_tuned("llama"))), abs=TOLERANCE)
    with ActivationSteering(vector, [1]).applied(subject, -0.5):
        assert mean(base) - plain == pytest.approx(-0.5 * vector.norm(1), abs=1e-4)
    with steered(base, dict(vector.directions), 0.0):
        assert mean(base) == plain


@pytest.mark.parametrize(
    ("given", "layer", "error", "message"),
    [
        (torch.ones(7), 1, BaseMismatchError, r"shape \[7\].* is 48 wide"),
        (torch.zeros(48), 1, DataError, "layer 1: the direction is zero"),
        (torch.full((48,), torch.nan), 1, NonFiniteError, "layer 1: the direction holds NaN"),
        (torch.ones(48), 3, ModelError, "layer 3 does not exist"),
    ],
)
def test_what_is_no_direction_of_the_model_is_refused(loaded, given, layer, error, message):
    with pytest.raises(error, match=message):
        unit_at(loaded()[0], given, layer)


def test_a_vector_without_the_layer_or_of_another_width_is_refused(loaded):
    model, tokenizer = loaded()
    one = SteeringVector({1: torch.ones(48)}, "", None, "one", "random", (1, 1))
    with pytest.raises(TensorMismatchError, match="one: has no direction for layer 2"):
        projections(model, tokenizer, CHATS, one, -1)
    narrow = SteeringVector({1: torch.ones(32)}, "", None, "narrow", "random", (1, 1))
    with pytest.raises(BaseMismatchError, match="48 wide"):
        projections(model, tokenizer, CHATS, narrow, 1)


def test_a_real_model_reads_held_out_statements_on_their_side(shared):
    """A vector of training statements tells held-out ones apart, at every layer."""
    path = shared / "models" / "persona-tiny"
    model, tokenizer = load_model(path), load_tokenizer(path)

    def chats(level: str, part: str) -> list[Any]:
        file = shared / "data" / "big5_statements" / "extraversion.jsonl"
        statements = read_statements(file, trait="extraversion", level=level, part=part)[:24]
        return [answered(question("What are you like?"), one.text) for one in statements]

    sides = [chats(level, "train") for level in ("high", "low")]
    vector = SteeringVector.extract(model, tokenizer, *sides)
    for layer in vector.layers:
        high, low = (
            projections(model, tokenizer, chats(level, "held_out"), vector, layer)
            for level in ("high", "low")
        )
        # Probability that a high statement lies further along than a low one.
        assert (high[:, None] > low).double().mean() > 0.75
