"""Pooled activations equal a plain loop over single inputs, and are those of the tokens named."""

from typing import Any

import pytest
import torch
from torch import Tensor

from personality_vector.errors import DataError, ModelError, NonFiniteError
from personality_vector.numeric.random import generator_for
from personality_vector.steering import Positions, steered
from personality_vector.steering.activations import Reader, template_hash
from personality_vector.subject.chat import answered, question, render
from personality_vector.subject.encoding import encode_chats
from personality_vector.subject.models import decoder_blocks, hidden_size

FAMILIES = ("llama", "qwen2", "gemma2", "gpt_neox", "phi", "gpt2")
POOLINGS = ("response_mean", "prompt_last", "prompt_mean", "last")

CHATS = [
    answered(question("What are you like?"), "I love meeting new people."),
    answered(question("And at a party, what do you do?", system="Be brief."), "I talk é."),
    answered(question("Hi"), "I am the one who talks at every party, and then I talk some more."),
    answered(question("And at a party?"), "No."),
]


def pooled_activations(model: Any, tokenizer: Any, chats: Any, *how: Any, **named: Any) -> Any:
    return Reader(model, tokenizer, *how, **named).pooled(chats)


def mean_activations(model: Any, tokenizer: Any, chats: Any, *how: Any, **named: Any) -> Any:
    return Reader(model, tokenizer, *how, **named).mean(chats)


@torch.no_grad()
def outputs(model: Any, ids: list[int], layer: int) -> Tensor:
    """Return the output of one block for one unpadded sequence."""
    seen: list[Any] = []
    handle = decoder_blocks(model)[layer].register_forward_hook(
        lambda _block, _args, output: seen.append(output)
    )
    model(torch.tensor([ids]))
    handle.remove()
    return (seen[0][0] if isinstance(seen[0], tuple) else seen[0])[0].double()


def oracle(model: Any, tokenizer: Any, chat: Any, layer: int, pooling: str) -> Tensor:
    if pooling.startswith("prompt"):
        text = render(tokenizer, chat[:-1], reply_follows=True)
        hidden = outputs(model, tokenizer(text)["input_ids"], layer)
        return hidden[-1] if pooling == "prompt_last" else hidden.mean(0)
    # Of the pico template the response is followed by one token, the end mark.
    ids = tokenizer(render(tokenizer, chat))["input_ids"]
    reply = len(tokenizer(chat[-1]["content"])["input_ids"])
    hidden = outputs(model, ids, layer)[-1 - reply : -1]
    return hidden[-1] if pooling == "last" else hidden.mean(0)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", FAMILIES)
def test_pooled_activations_are_those_of_single_chats(loaded, family, pooling):
    model, tokenizer = loaded(family)
    layers = range(len(decoder_blocks(model)))
    pooled = pooled_activations(model, tokenizer, CHATS, None, pooling, 3)
    assert list(pooled) == list(layers)
    for layer in layers:
        assert pooled[layer].dtype == torch.float32
        expected = torch.stack([oracle(model, tokenizer, c, layer, pooling) for c in CHATS])
        torch.testing.assert_close(pooled[layer], expected.float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_mean_is_that_of_the_pooled_activations(loaded, pooling):
    model, tokenizer = loaded("qwen2")
    pooled = pooled_activations(model, tokenizer, CHATS, [0, -1], pooling)
    mean = mean_activations(model, tokenizer, CHATS, [0, -1], pooling, 3)
    assert sorted(mean) == sorted(pooled) == [0, 2]
    for layer, rows in pooled.items():
        assert mean[layer].dtype == torch.float64
        torch.testing.assert_close(mean[layer], rows.double().mean(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_batch_size_does_not_matter(loaded, family):
    model, tokenizer = loaded(family)
    whole, single = (pooled_activations(model, tokenizer, CHATS, [1], batch_size=n) for n in (9, 1))
    torch.testing.assert_close(whole[1], single[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", ["prompt_last", "prompt_mean"])
def test_a_prompt_is_the_same_whether_or_not_a_response_follows(loaded, pooling):
    model, tokenizer = loaded("llama")
    asked = [chat[:-1] for chat in CHATS]
    one, two = (pooled_activations(model, tokenizer, c, [2], pooling) for c in (CHATS, asked))
    assert torch.equal(one[2], two[2])


@torch.no_grad()
def test_the_last_token_of_the_prompt_is_the_one_that_predicts_the_first_of_the_reply(loaded):
    model, tokenizer = loaded("llama")
    pooled = pooled_activations(model, tokenizer, CHATS, [-1], "prompt_last")[2]
    predicted = model.lm_head(model.model.norm(pooled)).argmax(-1).tolist()
    for chat, token in zip(CHATS, predicted, strict=True):
        text = render(tokenizer, chat[:-1], reply_follows=True)
        ids = tokenizer(text, return_tensors="pt")["input_ids"]
        assert model.generate(ids, max_new_tokens=1, do_sample=False)[0, -1] == token


def test_last_is_that_of_the_response_or_else_of_the_prompt(loaded):
    model, tokenizer = loaded("llama")
    mixed = [CHATS[0], CHATS[1][:-1]]
    pooled = pooled_activations(model, tokenizer, mixed, [1], "last")[1]
    expected = [
        oracle(model, tokenizer, CHATS[0], 1, "last"),
        oracle(model, tokenizer, CHATS[1], 1, "prompt_last"),
    ]
    torch.testing.assert_close(pooled, torch.stack(expected).float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("positions", "pooling", "share"),
    [
        ("response", "response_mean", 1.0),
        ("response", "last", 1.0),
        ("response", "prompt_last", 0.0),
        ("prompt", "response_mean", 0.0),
        ("prompt", "prompt_mean", 1.0),
        ("last 1", "prompt_last", 1.0),
        ("all", "response_mean", 1.0),
    ],
)
def test_steering_knows_where_prompts_end_and_is_seen(loaded, positions, pooling, share):
    """``output_hidden_states`` would not see it: it records before a user's hook runs."""
    model, tokenizer = loaded("llama")
    addition = 3 * torch.randn(hidden_size(model), generator=generator_for(0, "addition"))
    plain = pooled_activations(model, tokenizer, CHATS, [2], pooling, 3)[2]
    with steered(model, {2: addition}, positions=Positions.parse(positions)):
        moved = pooled_activations(model, tokenizer, CHATS, [2], pooling, 3)[2]
    expected = (share * addition).expand_as(plain)
    torch.testing.assert_close(moved - plain, expected, rtol=0, atol=1e-5)


def test_padding_is_never_read(loaded):
    model, tokenizer = loaded("llama")
    mask = encode_chats(tokenizer, CHATS).attention_mask.bool()
    plain = pooled_activations(model, tokenizer, CHATS, [2])[2]

    def poison(_block: Any, _args: Any, output: Tensor) -> Tensor:
        return output.masked_fill(~mask[..., None], float("nan"))

    assert not mask.all()
    handle = decoder_blocks(model)[2].register_forward_hook(poison)
    assert torch.equal(pooled_activations(model, tokenizer, CHATS, [2])[2], plain)
    handle.remove()


def test_the_output_layer_is_not_run_and_no_cache_is_kept(loaded):
    model, tokenizer = loaded("llama")
    seen: list[Any] = []
    model.lm_head.register_forward_hook(lambda *_: seen.append("head"))
    model.model.register_forward_hook(lambda _m, _a, out: seen.append(out.past_key_values))
    mean_activations(model, tokenizer, CHATS, [0])
    assert seen == [None]


def test_a_chat_without_a_response_has_no_response_mean_and_is_named(loaded):
    model, tokenizer = loaded("llama")
    with pytest.raises(DataError, match="must end with a message of the assistant") as caught:
        mean_activations(model, tokenizer, [*CHATS, question("Are you there?")], batch_size=1)
    assert caught.value.__notes__ == ["while at input 4"]
    assert not any(block._forward_hooks for block in decoder_blocks(model))


def test_all_chats_are_read_before_the_model_runs(loaded):
    model, tokenizer = loaded("llama")
    calls: list[Any] = []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(DataError):
        mean_activations(model, tokenizer, [*CHATS, question("Hello?")], batch_size=1)
    assert not calls


@pytest.mark.parametrize("pooling", ["prompt_last", "prompt_mean"])
def test_a_chat_without_a_prompt_is_refused(loaded, pooling):
    chat = [{"role": "assistant", "content": "I talk."}]
    with pytest.raises(DataError, match=f"pooling {pooling} needs a prompt"):
        pooled_activations(*loaded("llama"), [chat], pooling=pooling)


def test_nothing_to_read_is_refused(loaded):
    model, tokenizer = loaded("llama")
    for read in (pooled_activations, mean_activations):
        with pytest.raises(DataError, match="at least one"):
            read(model, tokenizer, [])


def test_nan_is_refused_by_layer_and_input(loaded):
    model, tokenizer = loaded("llama")
    token = tokenizer("é")["input_ids"][0]  # only the second chat has it
    with torch.no_grad():
        model.model.embed_tokens.weight[token] = float("inf")
    with pytest.raises(NonFiniteError, match=r"layer 1: .* for input 1 are NaN or infinite"):
        pooled_activations(model, tokenizer, CHATS, [1, 2], batch_size=1)


def test_layers_are_checked(loaded):
    model, tokenizer = loaded("phi")
    with pytest.raises(ModelError, match="layer 7"):
        Reader(model, tokenizer, [0, 7])
    with pytest.raises(DataError, match="same block twice"):
        Reader(model, tokenizer, [1, -1])


def test_a_bfloat16_model_is_pooled_in_float64(loaded):
    model, tokenizer = loaded("llama", "bfloat16")
    mean = mean_activations(model, tokenizer, CHATS[:1], [1])[1]
    expected = oracle(model, tokenizer, CHATS[0], 1, "response_mean")
    assert torch.equal(mean, expected)
    assert not torch.equal(mean, mean.bfloat16().double())


def test_the_hash_of_a_template_changes_with_it(loaded):
    _, tokenizer = loaded("llama")
    first = template_hash(tokenizer)
    assert len(first) == 32
    assert template_hash(tokenizer) == first
    tokenizer.chat_template += " "
    assert template_hash(tokenizer) != first
    tokenizer.chat_template = {"default": "a", "tool_use": "b"}
    assert len(template_hash(tokenizer)) == 32
    tokenizer.chat_template = None
    assert template_hash(tokenizer) == ""
