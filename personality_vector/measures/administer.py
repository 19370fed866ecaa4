"""Asking a model the items of an instrument."""

from dataclasses import dataclass
from typing import Any

import torch

from personality_vector.data.instruments import Instrument, Item
from personality_vector.errors import DataError, NonFiniteError
from personality_vector.numeric.random import key_for
from personality_vector.progress import progress
from personality_vector.subject.chat import Chat, ChatEdit, question, render
from personality_vector.subject.generation import generate_replies
from personality_vector.subject.models import device_of
from personality_vector.subject.prompts import Prompts, reading


@dataclass(frozen=True, slots=True)
class Response:
    """What the model said to one item, raw.

    Attributes:
        item: The question.
        sample: 0-based number of the repetition.
        chat: The chat as the model read it, after the edit.
        text: The reply, with white space trimmed and nothing else removed.
    """

    item: Item
    sample: int
    chat: Chat
    text: str


def administer(  # noqa: PLR0913  (model and tokenizer travel together throughout)
    model: Any,
    tokenizer: Any,
    instrument: Instrument,
    *,
    edit: ChatEdit = identity,
    generation: Generation,
    samples: int,
    seed: int,
) -> list[Response]:
    """Return ``samples`` responses to each item, sample by sample, items in order.

    Sample ``k`` draws from a seed fixed by ``(seed, k)`` and nothing else, so interventions share
    random numbers, and the first samples of a longer run are those of a shorter one.

    Raises:
        DataError: ``samples`` is not positive, more than one greedy sample is asked for (they
            would be copies and feign precision), or the chat template refuses a chat.
        NonFiniteError: The model predicts NaN or infinity after the first chat; greedy decoding
            would make words of it.
    """
    _require_samples(samples, generation.temperature)
    chats = [edit(question(item.text, system=instrument.system)) for item in instrument.items]
    _require_numbers(model, tokenizer, chats[0])
    responses: list[Response] = []
    for sample in progress(range(samples), "administer"):
        replies = generate_replies(
            model, tokenizer, chats, generation, seed=sample_seed(seed, sample)
        )
        responses += [
            Response(item, sample, chat, reply)
            for item, chat, reply in zip(instrument.items, chats, replies, strict=True)
        ]
    return responses


def sample_seed(seed: int, sample: int) -> int:
    """Return the 46-bit seed of repetition ``sample``.

    46 bits, because :func:`generate_replies` multiplies it by 100,003 and torch takes 63.
    """
    return key_for(seed, f"sample {sample}") >> 17


@torch.no_grad()
def _require_numbers(model: Any, tokenizer: Any, chat: Chat) -> None:
    text = render(tokenizer, chat, reply_follows=True)
    tokens = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    with reading(Prompts.of(tokens)):
        last = model(input_ids=tokens.to(device_of(model))).logits[0, -1].float()
    # Single words may be ruled out with -inf, so it is their sum that must be a number.
    if not bool(torch.isfinite(torch.logsumexp(last, dim=0))):
        raise NonFiniteError(f"the model predicts NaN or infinity after {chat[-1]['content']!r}")


def _require_samples(samples: int, temperature: float) -> None:
    if samples < 1:
        raise DataError(f"samples must be at least 1, got {samples}")
    if samples > 1 and temperature == 0:
        raise DataError(
            f"{samples} samples at temperature 0 are copies of one reply; "
            "ask for 1 sample or a temperature above 0"
        )
