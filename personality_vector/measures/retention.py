"""What an intervention does besides its purpose: distance from the base and loss of fluency."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from personality_vector.errors import DataError, NonFiniteError, TensorMismatchError
from personality_vector.judges.texts import distinct_n, mean_words
from personality_vector.subject.chat import (
    Chat,
    ChatEdit,
    EncodedChats,
    batched,
    encode_chats,
    response_log_probs,
)
from personality_vector.subject.models import device_of

__all__ = ["Retention", "RetentionScore", "distinct_n", "mean_words"]


@dataclass(frozen=True, slots=True)
class RetentionScore:
    """Side effects on the reference chats.

    Attributes:
        kl_to_base: Mean over response tokens of KL(base || edited), in nats per token; 0 for the
            unedited model.
        perplexity: ``exp`` of the mean negative log-likelihood of the same tokens under the edited
            model.
        tokens: Number of response tokens behind both.
    """

    kl_to_base: float
    perplexity: float
    tokens: int


@dataclass(frozen=True, slots=True)
class _Reference:
    """One reference response as the base reads it.

    Attributes:
        chat: The chat, ending with the response.
        tokens: The response's first tokens, all of them except in the last reference.
        log_probs: float32 on the CPU, natural logarithm, one row for each of ``tokens``.
    """

    chat: Chat
    tokens: Int[Tensor, " seq"]
    log_probs: Float[Tensor, "seq vocab"]


@dataclass(frozen=True, slots=True)
class Retention:
    """The base's predictions on reference chats, and the comparison of a model with them.

    Made by :meth:`measure_base`.
    """

    references: Sequence[_Reference]
    batch_size: int

    @classmethod
    def measure_base(
        cls,
        model: nn.Module,
        tokenizer: Any,
        chats: Sequence[Chat],
        *,
        max_tokens: int = 2000,
        batch_size: int = 8,
    ) -> "Retention":
        """Keep the base's log-probabilities for the first ``max_tokens`` response tokens.

        Chats are taken in order; the last one is cut where the bound is reached and later ones are
        left out. Memory: ``max_tokens * vocab * 4`` bytes, 1 GB for 2,000 tokens of 128,000 words.

        Args:
            model: The unedited model.
            tokenizer: Its tokenizer.
            chats: Neutral reference chats, each ending with an assistant's message.
            max_tokens: Bound on the tokens that are compared.
            batch_size: Chats per forward pass.

        Raises:
            DataError: There is no chat, a chat has no response, or a bound is not positive.
            NonFiniteError: The base itself predicts NaN or infinity.
        """
        if not chats or max_tokens < 1 or batch_size < 1:
            raise DataError("retention needs reference chats, max_tokens >= 1 and batch_size >= 1")
        chosen = _first(tokenizer, chats, max_tokens)
        references: list[_Reference] = []
        left = max_tokens
        for chat, tokens, log_probs in _predictions(model, tokenizer, chosen, batch_size):
            _require_finite(log_probs[:left], "base")
            # Cloned, or a slice would keep the whole response in memory.
            references.append(_Reference(chat, tokens[:left].clone(), log_probs[:left].clone()))
            left -= len(references[-1].tokens)
        return cls(references, batch_size)

    def __call__(
        self, model: nn.Module, tokenizer: Any, edit: ChatEdit = identity
    ) -> RetentionScore:
        """Return how far ``model`` is from the base on the same response tokens.

        Raises:
            NonFiniteError: The edited model predicts NaN or infinity.
            TensorMismatchError: It splits a response into other tokens, or has another vocabulary.
        """
        chats = [_edited(reference.chat, edit) for reference in self.references]
        divergence, surprise, count = 0.0, 0.0, 0
        predictions = _predictions(model, tokenizer, chats, self.batch_size)
        for reference, (_, tokens, log_probs) in zip(self.references, predictions, strict=True):
            kept = len(reference.tokens)
            _require_same_tokens(reference, tokens[:kept], log_probs)
            _require_finite(log_probs[:kept], "edited model")
            divergence += _divergence(reference.log_probs, log_probs[:kept])
            surprise -= float(_of_tokens(log_probs[:kept], reference.tokens).double().sum())
            count += kept
        return RetentionScore(divergence / count, _perplexity(surprise / count), count)


def _first(tokenizer: Any, chats: Sequence[Chat], max_tokens: int) -> list[Chat]:
    """Return the first chats that hold ``max_tokens`` response tokens, the last one included.

    Chosen before the model runs, so that every later pass has the same batches and thus, for the
    same weights, the same bits.
    """
    chosen: list[Chat] = []
    tokens = 0
    for chat in chats:
        if tokens >= max_tokens:
            break
        chosen.append(chat)
        tokens += int(encode_chats(tokenizer, [chat]).response_mask.sum())
    return chosen


def _edited(chat: Chat, edit: ChatEdit) -> Chat:
    """Edit what precedes the response, as an intervention would before the model replies."""
    return [*edit(chat[:-1]), chat[-1]]


def _predictions(
    model: nn.Module, tokenizer: Any, chats: Sequence[Chat], batch_size: int
) -> Iterator[tuple[Chat, Int[Tensor, " seq"], Float[Tensor, "seq vocab"]]]:
    """Yield each chat, its response's tokens and the log-probabilities before each, on the CPU."""
    for batch in batched(chats, batch_size):
        encoded = encode_chats(tokenizer, batch)
        log_probs = _log_probs(model, encoded)
        for row, chat in enumerate(batch):
            mask: Bool[Tensor, " positions"] = encoded.response_mask[row, 1:]
            yield chat, encoded.input_ids[row, 1:][mask], log_probs[row][mask]


@torch.no_grad()
def _log_probs(model: nn.Module, encoded: EncodedChats) -> Float[Tensor, "batch positions vocab"]:
    return response_log_probs(model, encoded.to(device_of(model))).cpu()


def _divergence(base: Float[Tensor, "seq vocab"], edited: Float[Tensor, "seq vocab"]) -> float:
    """Return the sum over positions of KL(base || edited), in nats."""
    return float((base.exp() * (base - edited)).sum(dim=1, dtype=torch.float64).sum())


def _of_tokens(
    log_probs: Float[Tensor, "seq vocab"], tokens: Int[Tensor, " seq"]
) -> Float[Tensor, " seq"]:
    return log_probs.gather(1, tokens[:, None])[:, 0]


def _perplexity(surprise: float) -> float:
    if surprise > 700:  # exp overflows float64 at 709
        raise NonFiniteError(f"a perplexity of exp({surprise:.0f}) is not a number")
    return math.exp(surprise)


def _require_finite(log_probs: Float[Tensor, "seq vocab"], who: str) -> None:
    if not bool(torch.isfinite(log_probs).all()):
        raise NonFiniteError(f"the {who} predicts NaN or infinity on a reference chat")


def _require_same_tokens(
    reference: _Reference, tokens: Int[Tensor, " seq"], log_probs: Float[Tensor, "other vocab"]
) -> None:
    if not torch.equal(reference.tokens, tokens):
        text = str(reference.chat[-1]["content"])
        raise TensorMismatchError(
            f"the response {text[:60]!r} is not the same tokens after the edit"
        )
    ours, theirs = reference.log_probs.shape[1], log_probs.shape[1]
    if ours != theirs:
        raise TensorMismatchError(f"the base has a vocabulary of {ours}, the edited model {theirs}")
