"""Replies: how they are drawn, and what each one cost."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from personality_vector.numeric.random import key_for
from personality_vector.subject.chat import Chat, batched, encode_prompts
from personality_vector.subject.models import device_of


@dataclass(frozen=True, slots=True)
class Sampling:
    """How replies are drawn.

    Attributes:
        max_new_tokens: Longest reply, in tokens.
        temperature: 0 is greedy; Personality Vector samples at 0.6.
        top_p: Nucleus of the sampling distribution.
        batch_size: Chats generated at once; a batch has its own random numbers.
        repetition_penalty: Divides the logits of tokens that have occurred; 1 is none.
        no_repeat_ngram: No run of so many tokens may occur twice; 0 allows it.
    """

    max_new_tokens: int = 64
    temperature: float = 0.6
    top_p: float = 1.0
    batch_size: int = 32
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply.

    Attributes:
        text: With white space trimmed and nothing else removed.
        tokens_in: Tokens of the prompt.
        tokens_out: Tokens of the reply, the end mark included.
        seconds: Its share of the time that its batch took.
    """

    text: str
    tokens_in: int
    tokens_out: int
    seconds: float


def sample_seed(seed: int, sample: int) -> int:
    """Return the 46-bit seed of repetition ``sample``.

    46 bits, because :func:`generate_replies` multiplies it by 100,003 and torch takes 63.
    """
    return key_for(seed, f"sample {sample}") >> 17


@torch.no_grad()
def generate_replies(
    model: Any, tokenizer: Any, chats: Sequence[Chat], sampling: Sampling, *, seed: int
) -> list[Reply]:
    """Return one reply to each chat.

    The same seed, chats and batch size draw the same noise whatever is done to the model, so two
    interventions are compared on common random numbers. The caller's random state is untouched.
    """
    replies: list[Reply] = []
    devices = [device_of(model)] if device_of(model).type == "cuda" else []
    for index, batch in enumerate(batched(chats, sampling.batch_size)):
        with torch.random.fork_rng(devices=devices):
            # generate() draws from the global generator and takes no other.
            torch.random.manual_seed(seed * 100_003 + index)
            replies += _generate(model, tokenizer, batch, sampling)
    return replies


def _generate(model: Any, tokenizer: Any, chats: Sequence[Chat], sampling: Sampling) -> list[Reply]:
    started = time.monotonic()
    prompts = encode_prompts(tokenizer, chats).to(device_of(model))
    drawing = (
        {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p}
        if sampling.temperature > 0
        else {"do_sample": False, "temperature": None, "top_p": None}
    )
    tokens = model.generate(
        input_ids=prompts["input_ids"],
        attention_mask=prompts["attention_mask"],
        max_new_tokens=sampling.max_new_tokens,
        pad_token_id=tokenizer.pad_token_id,
        # A model's own generation_config may set these; they would be hidden settings.
        top_k=None,
        num_beams=1,
        repetition_penalty=sampling.repetition_penalty,
        no_repeat_ngram_size=sampling.no_repeat_ngram,
        **drawing,
    )
    new = tokens[:, prompts["input_ids"].shape[1] :]
    texts = tokenizer.batch_decode(new, skip_special_tokens=True)
    seconds = (time.monotonic() - started) / len(texts)
    read = prompts["attention_mask"].sum(1).tolist()
    said = _lengths(new, tokenizer).tolist()
    return [
        Reply(text.strip(), taken, made, seconds)
        for text, taken, made in zip(texts, read, said, strict=True)
    ]


def _lengths(new: torch.Tensor, tokenizer: Any) -> torch.Tensor:
    """Return the number of tokens of each reply, up to its first padding."""
    is_padding = new == tokenizer.pad_token_id
    if tokenizer.pad_token_id == tokenizer.eos_token_id:
        # The end mark and the padding are one token: the first of them belongs to the reply.
        is_padding = is_padding & (is_padding.cumsum(1) > 1)
    lengths: torch.Tensor = (~is_padding).sum(1)
    return lengths
