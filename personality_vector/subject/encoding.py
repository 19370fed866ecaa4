"""Chats as tokens: which tokens are the response, and how likely they are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from personality_vector.errors import DataError
from personality_vector.subject.chat import Chat, render
from personality_vector.subject.prompts import Prompts, reading


@dataclass(frozen=True, slots=True)
class EncodedChats:
    """Right-padded chats that end with an assistant's message."""

    input_ids: Int[Tensor, "batch seq"]
    attention_mask: Int[Tensor, "batch seq"]
    response_mask: Bool[Tensor, "batch seq"]
    """True on the tokens of the last message's content; template and end marks are False."""

    @property
    def prompts(self) -> Prompts:
        """Where the prompt of each chat ends and its response begins."""
        return Prompts.of(
            self.input_ids, self.attention_mask, self.response_mask.int().argmax(dim=1).tolist()
        )

    def to(self, device: torch.device) -> "EncodedChats":
        """Return a copy on ``device``."""
        return EncodedChats(
            self.input_ids.to(device),
            self.attention_mask.to(device),
            self.response_mask.to(device),
        )


def encode_chats(tokenizer: Any, chats: Sequence[Chat]) -> EncodedChats:
    """Return ``chats`` as tokens with the exact extent of each final response.

    The boundary comes from character offsets in the rendered text, since tokenizing the prompt
    alone may cut where a token of the whole would not.

    Raises:
        DataError: A chat does not end with a non-empty assistant message, or cannot be rendered.
    """
    rows = [_encode(tokenizer, chat) for chat in chats]
    input_ids, attention_mask = right_padded([ids for ids, _ in rows], int(tokenizer.pad_token_id))
    response_mask, _ = right_padded([is_response for _, is_response in rows])
    return EncodedChats(input_ids, attention_mask, response_mask.bool())


def right_padded(
    rows: Sequence[Sequence[int] | Tensor], fill: int = 0
) -> tuple[Int[Tensor, "rows seq"], Int[Tensor, "rows seq"]]:
    """Return rows of token ids as one batch, and its mask: 1 on tokens, 0 on padding.

    Padding is on the right, where causal attention hides it from every real token.
    """
    ids = [torch.as_tensor(row, dtype=torch.int64) for row in rows]
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
    return nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=fill), mask


def encode_prompts(tokenizer: Any, chats: Sequence[Chat]) -> Any:
    """Return chats before a reply, padded on the left, as ``generate`` reads them."""
    texts = [render(tokenizer, chat, reply_follows=True) for chat in chats]
    return tokenizer(
        texts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt"
    )


def _encode(tokenizer: Any, chat: Chat) -> tuple[list[int], list[bool]]:
    content = chat[-1]["content"].strip() if chat and chat[-1]["role"] == "assistant" else ""
    if not content:
        raise DataError("a chat must end with a message of the assistant, and it must not be empty")
    text = render(tokenizer, chat)
    # After the prompt, since the same words may occur in it.
    prompt = render(tokenizer, chat[:-1], reply_follows=True) if chat[:-1] else ""
    differ = (i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b)
    begin = text.find(content, next(differ, min(len(prompt), len(text))))
    if begin < 0:
        raise DataError(f"the chat template rewrites the response {content[:60]!r}")
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = encoded["offset_mapping"]
    end = begin + len(content)
    return encoded["input_ids"], [first < end and last > begin for first, last in spans]


def mean_log_probs(model: nn.Module, encoded: EncodedChats) -> Float[Tensor, " batch"]:
    """Return the mean log-probability of each response's tokens, with its gradient if wanted."""
    token = response_log_probs(model, encoded).gather(2, encoded.input_ids[:, 1:, None])[..., 0]
    mask = encoded.response_mask[:, 1:]
    return (token * mask).sum(1) / mask.sum(1)


def response_log_probs(
    model: nn.Module, encoded: EncodedChats
) -> Float[Tensor, "batch positions vocab"]:
    """Return ``log p`` over the vocabulary for tokens 1, 2, ... of each row; float32."""
    with reading(encoded.prompts):
        logits = model(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask).logits
    return torch.log_softmax(logits[:, :-1].float(), dim=-1)
