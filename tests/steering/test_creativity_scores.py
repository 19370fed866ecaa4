"""The creativity score is its formula, token by token."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from personality_vector.errors import BaseMismatchError, DataError, NonFiniteError
from personality_vector.numeric.random import generator_for
from personality_vector.steering import SteeringVector, steered
from personality_vector.steering.monitor import creativity_by_layer, creativity_scores
from personality_vector.subject.chat import answered, question, render
from personality_vector.subject.encoding import encode_chats
from personality_vector.subject.models import decoder_blocks, hidden_size

FAMILIES = ("llama", "qwen2", "gemma2", "gpt_neox", "phi", "gpt2")
END = 4
CHATS = [
    answered(question("Write about a party."), "I love parties."),
    answered(question("Write.", system="Be brief."), "I am quiet, and I go home at ten."),
    answered(question("Hi"), "I"),
]


def direction_for(model: Any, name: str = "a") -> Tensor:
    return 3 * torch.randn(hidden_size(model), generator=generator_for(0, name))


@torch.no_grad()
def restated(model: Any, ids: Tensor, end: int, direction: Tensor, layer: int) -> np.ndarray:
    """``cos(LLM_l(x_t), a)`` for ``t = 0..T``: a plain pass over input and first ``t`` tokens.

    The hook is registered last, so it sees whatever steers the block.
    """
    a = direction.double().numpy()
    seen: list[Tensor] = []

    def record(_block: Any, _args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    handle = decoder_blocks(model)[layer].register_forward_hook(record)
    cosines = []
    for t in range(len(ids) - end + 1):
        model(ids[None, : end + t])
        state = seen[-1][0, -1].double().numpy()
        normalised = state / np.linalg.norm(state)
        cosines.append(normalised @ a / np.linalg.norm(a))
    handle.remove()
    return np.array(cosines)


def tokens_of(tokenizer: Any, chat: Any) -> tuple[Tensor, int]:
    """Return input and text of a chat as ids, and how many are the input."""
    encoded = encode_chats(tokenizer, [chat])
    places = encoded.response_mask[0].nonzero().flatten()
    return encoded.input_ids[0, : int(places[-1]) + 1], int(places[0])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_score_is_the_formula_token_by_token(loaded, family):
    model, tokenizer = loaded(family)
    direction = direction_for(model)
    for layer in range(len(decoder_blocks(model))):
        scores = creativity_scores(model, tokenizer, CHATS, direction, layer, batch_size=2)
        for chat, score in zip(CHATS, scores, strict=True):
            ids, end = tokens_of(tokenizer, chat)
            expected = restated(model, ids, end, direction, layer)
            assert len(expected) == len(ids) - end + 1
            np.testing.assert_allclose(score.numpy(), expected, rtol=0, atol=1e-6)
            assert score.mean() == pytest.approx(expected.mean(), abs=1e-6)


def test_one_pass_scores_all_layers(loaded):
    model, tokenizer = loaded()
    directions = {layer: direction_for(model, f"a{layer}") for layer in (0, 2)}
    vector = SteeringVector(directions, "", None, "v", "prompt_last", (1, 1))
    found = creativity_by_layer(model, tokenizer, CHATS, vector, [2, 0], batch_size=2)
    for layer, direction in directions.items():
        alone = creativity_scores(model, tokenizer, CHATS, direction, layer)
        assert found[layer].tolist() == pytest.approx([float(s.mean()) for s in alone], abs=1e-6)


def test_the_first_state_is_that_of_the_input_alone(loaded):
    """So texts that answer one input share it, and it is what the model reads before it writes."""
    model, tokenizer = loaded()
    direction = direction_for(model)
    chats = [answered(CHATS[0][:-1], text) for text in ("I love parties.", "No.")]
    one, other = creativity_scores(model, tokenizer, chats, direction, 1)
    assert one[0] == pytest.approx(float(other[0]), abs=1e-6)
    text = render(tokenizer, CHATS[0][:-1], reply_follows=True)
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    expected = restated(model, ids, len(ids), direction, 1)
    assert one[0] == pytest.approx(expected[0], abs=1e-6)


def test_neither_the_length_of_the_attribute_nor_that_of_the_batch_matters(loaded):
    model, tokenizer = loaded()
    direction = direction_for(model)
    one = creativity_scores(model, tokenizer, CHATS, direction, 1)
    for found in (
        creativity_scores(model, tokenizer, CHATS, 5 * direction, 1),
        creativity_scores(model, tokenizer, CHATS, direction, 1, batch_size=1),
    ):
        for a, b in zip(one, found, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    opposite = creativity_scores(model, tokenizer, CHATS, -direction, 1)
    means = [torch.stack([s.mean() for s in scores]) for scores in (opposite, one)]
    torch.testing.assert_close(means[0], -means[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_amplification_is_seen_at_the_layer_where_it_acts(loaded, family):
    """``h_l + lambda a`` turns the very states that are scored towards ``a``."""
    model, tokenizer = loaded(family)
    direction = direction_for(model)
    plain = creativity_scores(model, tokenizer, CHATS, direction, 1)
    with steered(model, {1: direction / direction.norm()}, 3.0):
        amplified = creativity_scores(model, tokenizer, CHATS, direction, 1)
        ids, end = tokens_of(tokenizer, CHATS[0])
        expected = restated(model, ids, end, direction, 1)
    np.testing.assert_allclose(amplified[0].numpy(), expected, rtol=0, atol=1e-6)
    pairs = zip(plain, amplified, strict=True)
    assert all((b > a).all() for a, b in pairs)


def test_a_text_needs_an_input_before_it(loaded):
    model, tokenizer = loaded()
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(DataError, match="no state x_0"):
        creativity_scores(model, tokenizer, [CHATS[0][1:]], direction_for(model), 1)


def test_another_width_is_refused(loaded):
    with pytest.raises(BaseMismatchError, match="48 wide"):
        creativity_scores(*loaded(), CHATS, torch.ones(32), 1)


def test_a_score_is_made_of_numbers_and_leaves_no_hook(loaded):
    model, tokenizer = loaded()
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0] = torch.inf
    with pytest.raises(NonFiniteError, match="at t = 0"):
        creativity_scores(model, tokenizer, CHATS, direction_for(model), 1)
    assert not any(module._forward_hooks for module in model.modules())
