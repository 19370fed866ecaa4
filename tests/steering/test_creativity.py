"""The creativity score is its formula, token by token; live and read again it is one score."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from personality_vector.errors import BaseMismatchError, DataError, NonFiniteError
from personality_vector.numeric.random import generator_for
from personality_vector.steering import Positions, steered
from personality_vector.steering.creativity import (
    CreativityScore,
    creativity_of_tokens,
    creativity_scores,
    scoring,
)
from personality_vector.subject.chat import answered, encode_chats, question, render
from personality_vector.subject.generation import Sampling, generate_replies
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
            np.testing.assert_allclose(score.per_token.numpy(), expected, rtol=0, atol=1e-6)
            assert score.mean == pytest.approx(expected.mean(), abs=1e-6)


def test_the_first_state_is_that_of_the_input_alone(loaded):
    """So texts that answer one input share it, and it is what the model reads before it writes."""
    model, tokenizer = loaded()
    direction = direction_for(model)
    chats = [answered(CHATS[0][:-1], text) for text in ("I love parties.", "No.")]
    one, other = creativity_scores(model, tokenizer, chats, direction, 1)
    assert one.per_token[0] == pytest.approx(float(other.per_token[0]), abs=1e-6)
    text = render(tokenizer, CHATS[0][:-1], reply_follows=True)
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
    expected = restated(model, ids, len(ids), direction, 1)
    assert one.per_token[0] == pytest.approx(expected[0], abs=1e-6)


def test_neither_the_length_of_the_attribute_nor_that_of_the_batch_matters(loaded):
    model, tokenizer = loaded()
    direction = direction_for(model)
    one = creativity_scores(model, tokenizer, CHATS, direction, 1)
    for found in (
        creativity_scores(model, tokenizer, CHATS, 5 * direction, 1),
        creativity_scores(model, tokenizer, CHATS, direction, 1, batch_size=1),
    ):
        for a, b in zip(one, found, strict=True):
            torch.testing.assert_close(a.per_token, b.per_token, rtol=0, atol=1e-6)
    opposite = creativity_scores(model, tokenizer, CHATS, -direction, 1)
    assert [s.mean for s in opposite] == pytest.approx([-s.mean for s in one])


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
    np.testing.assert_allclose(amplified[0].per_token.numpy(), expected, rtol=0, atol=1e-6)
    pairs = zip(plain, amplified, strict=True)
    assert all((b.per_token > a.per_token).all() for a, b in pairs)


# Live


def prompts_of(tokenizer: Any) -> Any:
    texts = [render(tokenizer, chat[:-1], reply_follows=True) for chat in CHATS]
    return tokenizer(
        texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
    )


def generate(model: Any, prompts: Any, new: int = 9, **given: Any) -> Tensor:
    options = {"do_sample": True, "top_k": None, "pad_token_id": 0, "eos_token_id": END, **given}
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(3)
        return model.generate(
            input_ids=prompts["input_ids"],
            attention_mask=prompts["attention_mask"],
            max_new_tokens=new,
            **options,
        )


def replies_in(tokens: Tensor, prompts: Any) -> list[tuple[Tensor, int]]:
    """Return input and reply of each row without padding and end marks, and the input's length."""
    width = prompts["input_ids"].shape[1]
    times = len(tokens) // len(prompts["input_ids"])
    found = []
    for number, row in enumerate(tokens.tolist()):
        begin = prompts["attention_mask"][number // times].tolist().index(1)
        reply = row[width:]
        stop = reply.index(END) if END in reply else len(reply)
        found.append((torch.tensor(row[begin : width + stop]), width - begin))
    return found


def dictated(prompts: Any, lengths: Sequence[int]) -> list[Callable[[Tensor, Tensor], Tensor]]:
    """Return what makes ``generate`` draw prescribed replies: as many tokens as said, then END."""
    width = prompts["input_ids"].shape[1]

    def rule(ids: Tensor, logits: Tensor) -> Tensor:
        step = ids.shape[1] - width
        words = [END if step == length else 20 + 3 * step for length in lengths]
        only = torch.full_like(logits, -torch.inf)
        only[torch.arange(len(lengths)), torch.tensor(words)] = 0.0
        return only

    return [rule]


def require_same(
    scores: list[CreativityScore], model: Any, rows: Any, direction: Tensor, layer: int
) -> None:
    """Live scores are those of the tokens read again, and of the formula."""
    assert len(scores) == len(rows)
    ids, ends = [list(column) for column in zip(*rows, strict=True)]
    again = creativity_of_tokens(model, ids, ends, direction, layer)
    for live, forced, (row, end) in zip(scores, again, rows, strict=True):
        torch.testing.assert_close(live.per_token, forced.per_token, rtol=0, atol=1e-6)
        assert live.mean == pytest.approx(forced.mean, abs=1e-6)
        expected = restated(model, row, end, direction, layer)
        np.testing.assert_allclose(live.per_token.numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_live_scores_are_those_of_the_text_read_again(loaded, family):
    """With left padding, a row that stops at once, one that stops later, one that is cut."""
    model, tokenizer = loaded(family)
    direction, prompts = direction_for(model), prompts_of(tokenizer)
    with scoring(model, direction, 1) as scores:
        tokens = generate(model, prompts, logits_processor=dictated(prompts, [0, 4, 9]))
    assert [len(score.per_token) - 1 for score in scores] == [0, 4, 9]
    require_same(scores, model, replies_in(tokens, prompts), direction, 1)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    "given",
    [
        {"use_cache": False},
        {"prefill_chunk_size": 4},
        {"num_return_sequences": 2},
        {"return_dict_in_generate": True},
        {"do_sample": False},
    ],
    ids=lambda given: next(iter(given)),
)
def test_ways_of_generating(loaded, family, given):
    model, tokenizer = loaded(family)
    direction, prompts = direction_for(model), prompts_of(tokenizer)
    with scoring(model, direction, 1) as scores:
        output = generate(model, prompts, **given)
    tokens = output if isinstance(output, Tensor) else output.sequences
    require_same(scores, model, replies_in(tokens, prompts), direction, 1)


def test_a_batch_that_all_ends_needs_no_further_pass(loaded):
    model, tokenizer = loaded()
    direction, prompts = direction_for(model), prompts_of(tokenizer)
    passes = []
    handle = model.get_decoder().register_forward_pre_hook(lambda *_: passes.append(1))
    with scoring(model, direction, 1) as scores:
        tokens = generate(model, prompts, logits_processor=dictated(prompts, [2, 0, 6]))
    handle.remove()
    assert len(passes) == 6 + 1
    assert [len(score.per_token) - 1 for score in scores] == [2, 0, 6]
    require_same(scores, model, replies_in(tokens, prompts), direction, 1)


def test_several_end_marks_end_a_reply(loaded):
    model, tokenizer = loaded()
    direction, prompts = direction_for(model), prompts_of(tokenizer)
    rule = dictated(prompts, [5, 9, 1])
    with scoring(model, direction, 1) as scores:
        generate(model, prompts, logits_processor=rule, eos_token_id=[END, 20 + 3 * 4])
    assert [len(score.per_token) - 1 for score in scores] == [4, 4, 1]


@pytest.mark.parametrize("watch_first", [True, False])
@pytest.mark.parametrize("positions", ["all", "response", "last 1 + response"])
def test_a_steered_generation_is_scored_as_it_is(loaded, watch_first, positions):
    model, tokenizer = loaded()
    direction, prompts = direction_for(model), prompts_of(tokenizer)
    where = Positions.parse(positions)

    def steering() -> Any:
        return steered(model, {1: direction_for(model, "addition")}, positions=where)

    with (
        nullcontext() if watch_first else steering(),
        scoring(model, direction, 1) as scores,
        steering() if watch_first else nullcontext(),
    ):
        tokens = generate(model, prompts)
    ids, ends = [list(column) for column in zip(*replies_in(tokens, prompts), strict=True)]
    with steering():
        again = creativity_of_tokens(model, ids, ends, direction, 1)
    plain = creativity_of_tokens(model, ids, ends, direction, 1)
    for live, forced, unsteered in zip(scores, again, plain, strict=True):
        torch.testing.assert_close(live.per_token, forced.per_token, rtol=0, atol=1e-6)
        assert (live.per_token - unsteered.per_token).abs().max() > 0.05


def test_scoring_changes_nothing_and_leaves_nothing_behind(loaded):
    model, tokenizer = loaded()
    prompts = prompts_of(tokenizer)
    plain = generate(model, prompts)
    with scoring(model, direction_for(model), 1):
        assert torch.equal(generate(model, prompts), plain)
    assert "generate" not in vars(model)
    assert sum(len(module._forward_hooks) for module in model.modules()) == 0
    assert sum(len(module._forward_pre_hooks) for module in model.modules()) == 0
    with pytest.raises(KeyError), scoring(model, direction_for(model), 1):
        raise KeyError
    assert "generate" not in vars(model)


def test_replies_of_all_batches_are_scored_in_order(loaded):
    model, tokenizer = loaded()
    direction = direction_for(model)
    chats = [chat[:-1] for chat in CHATS]
    greedy = Sampling(max_new_tokens=5, temperature=0.0, batch_size=2)
    with scoring(model, direction, 1) as scores:
        generate_replies(model, tokenizer, chats, greedy, seed=0)
    with scoring(model, direction, 1) as backwards:
        generate_replies(model, tokenizer, chats[::-1], greedy, seed=0)
    assert len(scores) == len(backwards) == 3
    for one, other in zip(scores, backwards[::-1], strict=True):
        torch.testing.assert_close(one.per_token, other.per_token, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 2}, "num_beams 2 mixes the rows"),
        ({"stop_strings": ["x"]}, "stop_strings: where a reply ended"),
        ({"stopping_criteria": [lambda *_: False]}, "stopping_criteria: where"),
    ],
)
def test_ways_of_generating_that_cannot_be_scored_are_refused(loaded, given, message):
    model, tokenizer = loaded()
    prompts = prompts_of(tokenizer)
    with scoring(model, direction_for(model), 1), pytest.raises(DataError, match=message):
        generate(model, prompts, **given)


@pytest.mark.parametrize("by_position", [True, False])
def test_what_a_given_configuration_leaves_open_is_the_models(loaded, monkeypatch, by_position):
    """``generate`` fills the gaps of a configuration from the model's: here the end mark."""
    model, tokenizer = loaded()
    prompts = prompts_of(tokenizer)
    monkeypatch.setattr(model, "generation_config", GenerationConfig(eos_token_id=END))
    short = GenerationConfig(max_new_tokens=8, pad_token_id=0)
    given = [prompts["input_ids"], short] if by_position else [prompts["input_ids"]]
    named = {} if by_position else {"generation_config": short}
    with scoring(model, direction_for(model), 1) as scores:
        model.generate(
            *given,
            **named,
            attention_mask=prompts["attention_mask"],
            logits_processor=dictated(prompts, [2, 0, 8]),
        )
    assert [len(score.per_token) - 1 for score in scores] == [2, 0, 8]


def test_a_configuration_given_by_position_counts(loaded):
    model, tokenizer = loaded()
    beams = GenerationConfig(max_new_tokens=2, pad_token_id=0, num_beams=2)
    with scoring(model, direction_for(model), 1), pytest.raises(DataError, match="num_beams 2"):
        model.generate(prompts_of(tokenizer)["input_ids"], beams)


def test_an_end_mark_that_is_switched_off_ends_nothing(loaded, monkeypatch):
    model, tokenizer = loaded()
    prompts = prompts_of(tokenizer)
    monkeypatch.setattr(model, "generation_config", GenerationConfig(eos_token_id=END))
    with scoring(model, direction_for(model), 1) as scores:
        rule = dictated(prompts, [2, 0, 8])
        generate(model, prompts, new=6, logits_processor=rule, eos_token_id=None)
    assert [len(score.per_token) - 1 for score in scores] == [6, 6, 6]


def test_beams_of_the_models_own_configuration_are_refused(loaded, monkeypatch):
    model, tokenizer = loaded()
    prompts = prompts_of(tokenizer)
    monkeypatch.setattr(model, "generation_config", GenerationConfig(num_beams=3))
    with scoring(model, direction_for(model), 1), pytest.raises(DataError, match="num_beams 3"):
        model.generate(
            prompts["input_ids"],
            generation_config=GenerationConfig(max_new_tokens=2, pad_token_id=0),
        )


def test_embeddings_have_no_tokens_to_score(loaded):
    model, _ = loaded()
    with (
        scoring(model, direction_for(model), 1),
        pytest.raises(DataError, match="no token ids"),
    ):
        model.generate(inputs_embeds=torch.randn(1, 3, 48), max_new_tokens=2, pad_token_id=0)


def test_a_text_needs_an_input_before_it(loaded):
    model, _ = loaded()
    with pytest.raises(DataError, match="no state x_0"):
        creativity_of_tokens(model, [torch.tensor([8, 9])], [0], direction_for(model), 1)


def test_another_width_is_refused(loaded):
    with pytest.raises(BaseMismatchError, match="48 wide"):
        creativity_scores(*loaded(), CHATS, torch.ones(32), 1)


def test_a_score_is_made_of_numbers():
    with pytest.raises(NonFiniteError, match="at t = 1"):
        CreativityScore(torch.tensor([0.5, torch.nan], dtype=torch.float64))
