"""Divergence: how far the edited model is from the base on the base's own replies."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from pydantic import Field

from personality_vector.errors import DataError, NonFiniteError, TensorMismatchError
from personality_vector.measures.spec import Asking, AskingSpec, BaseMeasure
from personality_vector.recipes.schema import Whole
from personality_vector.subject import Better, Chat, Reading, Subject, answered, question

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


class DivergenceSpec(AskingSpec):
    """KL(base || edited) and perplexity on the base's own replies, up to ``max_tokens`` of them."""

    max_tokens: Whole = Field(default=2000, ge=1)
    batch_size: Whole = Field(default=8, ge=1)

    def open(self) -> "Divergence":
        """Read the instrument.

        Raises:
            RecipeError: It is missing or not one.
        """
        return Divergence(
            self.asking(), self.max_tokens, batch_size=self.batch_size, name=self.called
        )


class _Reference(NamedTuple):
    """One reply of the base, as the base reads it.

    Attributes:
        chat: The chat, ending with the reply.
        tokens: The reply's first tokens, all of them except in the last reference.
        log_probs: float32 on the CPU, natural logarithm, one row for each of ``tokens``.
    """

    chat: Chat
    tokens: "Int[Tensor, ' seq']"
    log_probs: "Float[Tensor, 'seq vocab']"


@dataclass(frozen=True, slots=True)
class Divergence(BaseMeasure):
    """The base's predictions on its own replies, compared with those of the edited model.

    ``kl_base_edited``: mean over tokens of KL(base || edited), in nats per token; 0 for the
    unedited model. ``perplexity``: ``exp`` of the mean negative log-likelihood of the same tokens
    under the edited model. Neither sees what only the edited model would say.

    Attributes:
        asking: The questions that the base replies to.
        max_tokens: Bound on the tokens that are compared. Memory: ``max_tokens * vocab * 4``
            bytes, 1 GB for 2,000 tokens of 128,000 words, and three times the longest reply.
        seed: Seed of the base's replies: one reference for all seeds, so that these can be
            compared.
        batch_size: Chats per forward pass; it changes speed and memory only.
        references: Made by :meth:`prepare`.
    """

    asking: Asking
    max_tokens: int = 2000
    seed: int = 0
    batch_size: int = field(default=8, compare=False)
    name: str = "divergence"
    references: Sequence[_Reference] = field(default=(), compare=False)

    unit: ClassVar[str] = "nats per token"
    better: ClassVar[Better] = "low"

    def prepare(self, base: Subject) -> "Divergence":
        """Let the base reply, and keep its log-probabilities for the first ``max_tokens`` tokens.

        Replies are taken in random order, since the bound would otherwise leave out whole items;
        the last one is cut where the bound is reached.

        Raises:
            DataError: Every reply of the base is empty.
            NonFiniteError: It predicts NaN or infinity.
        """
        chosen = _first(base, self._replies(base), self.max_tokens)
        references: list[_Reference] = []
        left = self.max_tokens
        predictions = base.predictions(chosen, self.batch_size)
        for chat, (tokens, log_probs) in zip(chosen, predictions, strict=True):
            _require_finite(log_probs[:left], "base")
            # Cloned, or a slice would keep the whole response in memory.
            references.append(_Reference(chat, tokens[:left].clone(), log_probs[:left].clone()))
            left -= len(references[-1].tokens)
        return replace(self, references=tuple(references))

    def _replies(self, base: Subject) -> list[Chat]:
        from personality_vector.numeric.random import key_for

        found = [
            (
                key_for(0, f"{item.id} {sample}"),
                answered(question(item.text, system=self.asking.instrument.system), reply.text),
            )
            for item, sample, reply in self.asking(base, self.seed)
            if reply.text.strip()
        ]
        if not found:
            raise DataError(
                f"{self.name}: the base gives only empty replies or unfinished thoughts, so there "
                "is nothing to compare; ask it other questions, allow longer replies, or turn "
                "thinking off with template_options"
            )
        return [chat for _, chat in sorted(found, key=lambda row: row[0])]

    def collect(self, subject: Subject, seed: int) -> list[Reading]:  # noqa: ARG002
        """Return how far ``subject`` is from the base on the same tokens, as means over them.

        Raises:
            NonFiniteError: The edited model predicts NaN or infinity.
            TensorMismatchError: It splits a reply into other tokens, or has another vocabulary.
        """
        divergence, surprise, n = 0.0, 0.0, 0
        chats = [reference.chat for reference in self.references]
        predictions = subject.predictions(chats, self.batch_size)
        for reference, (tokens, log_probs) in zip(self.references, predictions, strict=True):
            kept = len(reference.tokens)
            edited = log_probs[:kept]
            _require_same_tokens(reference, tokens[:kept], edited)
            _require_finite(edited, "edited model")
            divergence += _divergence(reference.log_probs, edited)
            surprise -= float(edited.gather(1, reference.tokens[:, None]).double().sum())
            n += kept
        if surprise / n > 700:  # exp overflows float64 at 709
            raise NonFiniteError(f"a perplexity of exp({surprise / n:.0f}) is not a number")
        return [
            Reading(f"{self.name}.kl_base_edited", divergence / n, n=n),
            Reading(f"{self.name}.perplexity", math.exp(surprise / n), n=n, unit="perplexity"),
        ]


def _first(base: Subject, chats: Sequence[Chat], max_tokens: int) -> list[Chat]:
    """Return the first chats that hold ``max_tokens`` response tokens, the last one included.

    Chosen before the model runs, so that every later pass has the same batches and thus, for the
    same weights, the same bits.
    """
    from personality_vector.subject.encoding import encode_chats

    chosen: list[Chat] = []
    tokens = 0
    for chat in chats:
        if tokens >= max_tokens:
            break
        chosen.append(chat)
        tokens += int(encode_chats(base.tokenizer, [chat]).response_mask.sum())
    return chosen


def _divergence(base: "Float[Tensor, 'seq vocab']", edited: "Float[Tensor, 'seq vocab']") -> float:
    """Return the sum over positions of KL(base || edited), in nats."""
    import torch

    return float((base.exp() * (base - edited)).sum(dim=1, dtype=torch.float64).sum())


def _require_finite(log_probs: "Float[Tensor, 'seq vocab']", who: str) -> None:
    if not bool(log_probs.isfinite().all()):
        raise NonFiniteError(f"the {who} predicts NaN or infinity on a reference chat")


def _require_same_tokens(
    reference: _Reference, tokens: "Int[Tensor, ' seq']", log_probs: "Float[Tensor, 'other vocab']"
) -> None:
    if not reference.tokens.equal(tokens):
        raise TensorMismatchError(
            f"the response {reference.chat[-1]['content'][:60]!r} is split into other tokens "
            "after the edit"
        )
    ours, theirs = reference.log_probs.shape[1], log_probs.shape[1]
    if ours != theirs:
        raise TensorMismatchError(
            f"the base has a vocabulary of {ours}, the edited model one of {theirs}"
        )
