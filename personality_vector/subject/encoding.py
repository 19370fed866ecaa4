"""Chats as tokens: which tokens are the response, and how likely they are."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from personality_vector.errors import DataError, LengthError
from personality_vector.subject.chat import Chat, render
from personality_vector.subject.prompts import Prompts, reading
from personality_vector.subject.thoughts import Marks, closed, left_open, marks_of, said

MOST_LOGITS = 1 << 26
"""Of one forward pass: 256 MiB in float32, or 524 tokens of 128,000 words."""
_POSITIONS = ("max_position_embeddings", "n_positions")


@dataclass(frozen=True, slots=True)
class EncodedChats:
    """Right-padded chats that end with an assistant's message."""

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Int[Tensor, "batch seq"]
    response_mask: Bool[Tensor, "batch seq"]
    """True on the tokens of the last message's answer, not on template, thoughts or end marks."""
    strengths: Float[Tensor, " batch"] | None = None
    """Of the intervention in each row, if they differ."""

    @property
    def prompts(self) -> Prompts:
        """Where the prompt of each chat ends and its response begins."""
        ends = self.response_mask.int().argmax(dim=1).tolist()
        return Prompts.of(self.input_ids, self.attention_mask, ends, self.strengths)

    def to(self, device: torch.device) -> "EncodedChats":
        """Return a copy on ``device``."""
        return EncodedChats(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.response_mask.to(device),
            self.strengths,
        )

    def at(self, rows: slice | list[int]) -> "EncodedChats":
        """Return some of the chats."""
        return EncodedChats(
            self.input_ids[rows],
            self.attention_mask[rows],
            self.response_mask[rows],
            None if self.strengths is None else self.strengths[rows],
        )

    def parts(self, most: int) -> "Iterator[EncodedChats]":
        """Yield the chats again, at most ``most`` at once."""
        for begin in range(0, len(self.input_ids), most):
            yield self.at(slice(begin, begin + most))

    @property
    def asked(self) -> list[Any]:
        """What is asked in each row: its prompt, and the strength of the intervention there."""
        ends = self.prompts.ends
        strengths = [None] * len(ends) if self.strengths is None else self.strengths.tolist()
        rows = zip(self.input_ids.tolist(), ends, strengths, strict=True)
        return [(end, tuple(ids[:end]), strength) for ids, end, strength in rows]


def encode_chats(
    tokenizer: Any, chats: Sequence[Chat], strengths: Float[Tensor, " batch"] | None = None
) -> EncodedChats:
    """Return ``chats`` as tokens with the exact extent of each final response.

    The boundary comes from character offsets in the rendered text, since tokenizing the prompt
    alone may cut where a token of the whole would not.

    Args:
        tokenizer: The tokenizer of the model.
        chats: The chats.
        strengths: Of the intervention in each row, if they differ.

    Raises:
        DataError: A chat does not end with a non-empty assistant message, or cannot be rendered.
        LengthError: One is longer than the model reads.
    """
    rows = [_encode(tokenizer, chat) for chat in chats]
    input_ids, attention_mask = right_padded([ids for ids, _ in rows], _padding(tokenizer))
    response_mask, _ = right_padded([is_response for _, is_response in rows])
    return EncodedChats(input_ids, attention_mask, response_mask.bool(), strengths)


def training_row(tokenizer: Any, chat: Chat) -> dict[str, list[int]]:
    """Return a chat as ``input_ids`` and ``labels``: the loss is on the answer and its end.

    No token of a prompt is learned, and none of a thought: one that the template opens is empty.

    Raises:
        DataError: The template cannot show the chat, or rewrites its answer.
    """
    text, begin, _ = _located(tokenizer, chat, chat[-1]["content"].strip())
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, spans = encoded["input_ids"], encoded["offset_mapping"]
    labels = [token if last > begin else -100 for token, (_, last) in zip(ids, spans, strict=True)]
    return {"input_ids": ids, "labels": labels}


def right_padded(
    rows: Sequence[Sequence[int] | Tensor], fill: int = 0
) -> tuple[Int[Tensor, "rows seq"], Int[Tensor, "rows seq"]]:
    """Return rows of token ids as one batch, and its mask: 1 on tokens, 0 on padding.

    Padding is on the right, where causal attention hides it from every real token.
    """
    ids = [torch.as_tensor(row, dtype=torch.int64) for row in rows]
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=fill), mask


def encode_prompts(tokenizer: Any, texts: Sequence[str], chats: Sequence[Chat]) -> Any:
    """Return prompts padded on the left, as ``generate`` reads them.

    Args:
        tokenizer: The tokenizer of the model.
        texts: The prompts.
        chats: What they show, for messages.

    Raises:
        LengthError: One is longer than the model reads.
    """
    _padding(tokenizer)
    for text, chat in zip(texts, chats, strict=True):
        _require_short(tokenizer, text, chat)
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )
    for count, chat in zip(encoded["attention_mask"].sum(1).tolist(), chats, strict=True):
        _require_read(tokenizer, count, chat)
    return encoded


def encode_text(tokenizer: Any, text: str, chat: Chat) -> Any:
    """Return the tokens of a text and where each begins and ends in it.

    Args:
        tokenizer: The tokenizer of the model.
        text: The text.
        chat: What it shows, for messages.

    Raises:
        LengthError: It is longer than the model reads.
    """
    _require_short(tokenizer, text, chat)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    _require_read(tokenizer, len(encoded["input_ids"]), chat)
    return encoded


def most_tokens(config: Mapping[str, Any]) -> int | None:
    """Return how many tokens a model reads, or ``None`` where its config.json sets no bound.

    >>> most_tokens({"n_positions": 1024})
    1024
    """
    language = config.get("text_config")
    parts = [config, language] if isinstance(language, dict) else [config]
    found: list[int] = [
        part[key] for part in parts for key in _POSITIONS if type(part.get(key)) is int
    ]
    if not found or found[-1] < 1 or config.get("alibi") is True:
        return None
    ropes = [part.get(key) for part in parts for key in ("rope_scaling", "rope_parameters")]
    return max(found[-1], *(_stretched(rope, found[-1]) for rope in ropes))


def _stretched(rope: Any, most: int) -> int:
    """Return how many tokens scaled rotary positions reach, which need not be in the config."""
    if not isinstance(rope, dict):
        return 0
    factor, start = rope.get("factor"), rope.get("original_max_position_embeddings", most)
    fits = isinstance(factor, int | float) and 1 < factor < most and isinstance(start, int)
    inner = (_stretched(part, most) for part in rope.values())  # one for each type of layer
    return max(int(factor * start) if fits else 0, *inner, 0)


def longest_of(chat: Chat) -> str:
    """Return the longest message of a chat."""
    return max((message["content"] for message in chat), key=len, default="")


def _require_short(tokenizer: Any, text: str, chat: Chat) -> None:
    """Refuse a text that no tokens of this vocabulary fit into the model, before it is split."""
    most = getattr(tokenizer, "most_tokens", None)
    if most is None or len(text) <= most:
        return  # a token has at least one character, and the vocabulary takes time to walk through
    if len(text) > most * max(map(len, tokenizer.get_vocab())):
        raise LengthError(longest_of(chat), f"more than {most:,}", most)


def _require_read(tokenizer: Any, count: int, chat: Chat) -> None:
    most = getattr(tokenizer, "most_tokens", None)
    if most is not None and count > most:
        raise LengthError(longest_of(chat), f"{count:,}", most)


def before_answer(tokenizer: Any, chat: Chat) -> str:
    """Return a chat as text after which an answer stands: a thought that it opens is empty."""
    return closed(render(tokenizer, chat, reply_follows=True), marks_of(tokenizer))


def _padding(tokenizer: Any) -> int:
    if tokenizer.pad_token_id is None:
        raise DataError(
            f"{tokenizer.name_or_path}: the tokenizer has no token for padding or for the end of a "
            'text, and config.json names none; add "pad_token" to tokenizer_config.json'
        )
    return int(tokenizer.pad_token_id)


def _encode(tokenizer: Any, chat: Chat) -> tuple[list[int], list[bool]]:
    content = chat[-1]["content"].strip() if chat and chat[-1]["role"] == "assistant" else ""
    if not content:
        raise DataError("a chat must end with a message of the assistant, and it must not be empty")
    text, begin, end = _located(tokenizer, chat, content)
    encoded = encode_text(tokenizer, text, chat)
    spans = encoded["offset_mapping"]
    return encoded["input_ids"], [first < end and last > begin for first, last in spans]


def _located(tokenizer: Any, chat: Chat, content: str) -> tuple[str, int, int]:
    """Return a chat as text, and where the answer in its last message begins and ends.

    An answer follows the thought: an empty one, where the prompt opens one and the template leaves
    it out of a finished chat.
    """
    marks = marks_of(tokenizer)
    answer = said(content, marks).answer
    if not answer:
        raise DataError(f"the response {content[:60]!r} is a thought without an answer")
    text = render(tokenizer, chat)
    # After the prompt, since the same words may occur in it.
    prompt = render(tokenizer, chat[:-1], reply_follows=True) if chat[:-1] else ""
    differ = (i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b)
    start, opened = next(differ, min(len(prompt), len(text))), left_open(prompt, marks)
    if opened:
        start = min(start, prompt.rindex(opened[0]))
    begin = text.find(answer, _after_thought(text, start, [opened] if opened else marks))
    if begin < 0:
        raise DataError(f"the chat template rewrites the response {content[:60]!r}")
    if opened and opened[1] not in text[start:begin]:
        whole = closed(prompt, marks)
        text, begin = whole + text[begin:], len(whole)
    return text, begin, begin + len(answer)


def _after_thought(text: str, start: int, marks: Sequence[Marks]) -> int:
    """Return where a thought ends that begins at ``start``, so that no answer is found in it."""
    rest = text[start:]
    for before, after in marks:
        if rest.lstrip().startswith(before) and after in rest:
            return start + rest.index(after) + len(after)
    return start


def require_known(model: nn.Module, ids: Int[Tensor, "batch seq"]) -> None:
    """Check that a model has an embedding of every token.

    Raises:
        DataError: The tokenizer is one of another model, or of a larger vocabulary.
    """
    largest, rows = int(ids.max()), vocabulary_of(model)
    if rows is not None and largest >= rows:
        raise DataError(
            f"the tokenizer makes token {largest}, and the model knows tokens 0 to "
            f"{rows - 1}; give the model the tokenizer that belongs to it"
        )


def vocabulary_of(model: nn.Module) -> int | None:
    """Return the number of embeddings, where a model of another library says it."""
    embeddings = getattr(model, "get_input_embeddings", lambda: None)()
    return None if embeddings is None else int(embeddings.weight.shape[0])


def last_logits(model: nn.Module, count: int) -> dict[str, int]:
    """Return the argument with which a model computes the last ``count`` logits only, if any."""
    takes = inspect.signature(model.forward).parameters
    return {"logits_to_keep": count} if "logits_to_keep" in takes else {}


def mean_log_probs(model: nn.Module, encoded: EncodedChats) -> Float[Tensor, " batch"]:
    """Return the mean log-probability of each response's tokens, with its gradient if wanted."""
    rows = zip(response_tokens(encoded), response_log_probs(model, encoded), strict=True)
    return torch.stack([log_probs.gather(1, tokens[:, None]).mean() for tokens, log_probs in rows])


def response_tokens(encoded: EncodedChats) -> list[Int[Tensor, " tokens"]]:
    """Return the tokens of each response; the first token of all has nothing that predicts it."""
    rows = zip(encoded.input_ids[:, 1:], encoded.response_mask[:, 1:], strict=True)
    return [ids[is_response] for ids, is_response in rows]


def response_log_probs(
    model: nn.Module, encoded: EncodedChats
) -> Iterator[Float[Tensor, "tokens vocab"]]:
    """Yield ``log p`` over the vocabulary before each token of a response, row by row; float32.

    Where at least two responses on average follow the same prompt, a prompt is read once. Logits
    are computed from the first response on, and for so many rows at once that there are at most
    ``MOST_LOGITS`` of them, or for one row.
    """
    require_known(model, encoded.input_ids)
    asked = encoded.asked
    is_shared = 2 * len(set(asked)) <= len(asked) and remembers(model)
    for run in _of_one_length(encoded, asked) if is_shared else [encoded]:
        begin = int(run.response_mask[:, 1:].int().argmax(dim=1).min())
        kept = run.input_ids.shape[1] - begin
        most = max(1, MOST_LOGITS // (kept * (vocabulary_of(model) or 1)))
        for part in run.parts(most):
            logits = _logits(model, part, begin if is_shared else 0, kept)
            for row, is_response in zip(logits[:, -kept:-1], part.response_mask, strict=True):
                yield torch.log_softmax(row[is_response[begin + 1 :]].float(), dim=-1)


def _of_one_length(encoded: EncodedChats, asked: Sequence[Any]) -> Iterator[EncodedChats]:
    """Yield the chats in their order, those together that follow one another at one column."""
    for _, rows in groupby(range(len(asked)), key=lambda row: asked[row][0]):
        run = encoded.at(list(rows))
        width = int(run.attention_mask.sum(1).max())
        yield EncodedChats(
            run.input_ids[:, :width],
            run.attention_mask[:, :width],
            run.response_mask[:, :width],
            run.strengths,
        )


def remembers(model: nn.Module) -> bool:
    """Return whether a model continues from what it has read, without a gradient."""
    from transformers.cache_utils import DynamicCache

    takes, config = inspect.signature(model.forward).parameters, getattr(model, "config", None)
    if torch.is_grad_enabled() or not {"past_key_values", "use_cache"} <= takes.keys():
        return False
    # A model of another library may have a configuration of another kind, or none.
    return hasattr(config, "get_text_config") and _is_plain(DynamicCache(config=config))


def _is_plain(cache: Any) -> bool:
    """Return whether a cache is of attention alone, whose rows can be taken and repeated."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    plain = {DynamicLayer, DynamicSlidingWindowLayer}
    return type(cache) is DynamicCache and {type(layer) for layer in cache.layers} <= plain


def prompt_cache(
    model: Any, ids: Int[Tensor, "rows seq"], mask: Int[Tensor, "rows seq"] | None = None
) -> Any:
    """Return what a model remembers of tokens, or ``None`` if rows of it cannot be taken."""
    given = {"attention_mask": mask, "use_cache": True, **last_logits(model, 1)}
    cache = getattr(model(input_ids=ids, **given), "past_key_values", None)
    return cache if _is_plain(cache) else None


def _logits(
    model: Any, encoded: EncodedChats, shared: int, kept: int
) -> Float[Tensor, "batch columns vocab"]:
    """Return at least the last ``kept`` logits; of ``shared`` columns each prompt is read once."""
    prompts, given, asked = encoded.prompts, {}, encoded.asked
    firsts: dict[Any, int] = {}
    for row, one in enumerate(asked):
        firsts.setdefault(one, row)
    if shared and len(firsts) < len(asked):
        once, places = encoded.at([*firsts.values()]), {one: n for n, one in enumerate(firsts)}
        with reading(once.prompts):
            ids, mask = once.input_ids[:, :shared], once.attention_mask[:, :shared]
            cache = prompt_cache(model, ids, mask)
        if cache is not None:
            rows = torch.tensor([places[one] for one in asked], device=ids.device)
            cache.batch_select_indices(rows)
            prompts, given = replace(prompts, continues=rows), {"past_key_values": cache}
    with reading(prompts):
        found: Tensor = model(
            input_ids=encoded.input_ids[:, shared if given else 0 :],
            attention_mask=encoded.attention_mask,
            **last_logits(model, kept),
            **given,
        ).logits
    return found
