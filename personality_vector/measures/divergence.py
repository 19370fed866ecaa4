"""Divergence: how far the edited model is from the base, on its own replies and on the base's."""

import math
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from pydantic import Field

from personality_vector.errors import NonFiniteError, TensorMismatchError
from personality_vector.files.directory import explained
from personality_vector.measures.spec import (
    Asking,
    AskingMeasure,
    AskingSpec,
    first_tokens,
    require_replies,
)
from personality_vector.recipes.schema import Whole
from personality_vector.subject import Better, Chat, Findings, Reading, Subject

if TYPE_CHECKING:
    from jaxtyping import Float, Float64, Int
    from torch import Tensor


class DivergenceSpec(AskingSpec):
    """KL(edited || base) on the edited model's replies, and KL(base || edited) on the base's.

    Each on up to ``max_tokens`` tokens of them.
    """

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
    """One reply, as one of the two models reads it.

    Attributes:
        chat: The chat, ending with the reply.
        tokens: The reply's first tokens, all of them except in the last reference.
        log_probs: float32 on the CPU, natural logarithm, one row for each of ``tokens``.
    """

    chat: Chat
    tokens: "Int[Tensor, ' seq']"
    log_probs: "Float[Tensor, 'seq vocab']"


class _Spilled:
    """Predictions of the edited model in a temporary file, until the base has read the same chats.

    The file has no name, so it is gone when it is closed or the process ends, however that ends.

    Attributes:
        chats: The replies of the edited model.
        unscored: Replies that were left out.
        readings: What was measured on the base's replies.
    """

    def __init__(self, chats: Sequence[Chat], unscored: int, readings: Sequence[Reading]) -> None:
        self.chats, self.unscored, self.readings = chats, unscored, readings
        self._tokens: list[Int[Tensor, " seq"]] = []
        self._shapes: list[tuple[int, int]] = []
        with explained(Path(tempfile.gettempdir())):
            self._file = tempfile.TemporaryFile()  # noqa: SIM115  (closed by the finalizer)
        self.close = weakref.finalize(self, self._file.close)

    def append(
        self, tokens: "Int[Tensor, ' seq']", log_probs: "Float[Tensor, 'seq vocab']"
    ) -> None:
        """Write the predictions of the next chat."""
        self._tokens.append(tokens.clone())
        self._shapes.append((log_probs.shape[0], log_probs.shape[1]))
        with explained(Path(tempfile.gettempdir())):
            self._file.write(log_probs.contiguous().numpy().data)

    def __iter__(self) -> Iterator[_Reference]:
        import torch

        self._file.seek(0)
        for chat, tokens, shape in zip(self.chats, self._tokens, self._shapes, strict=True):
            log_probs = torch.empty(shape)
            self._file.readinto(log_probs.numpy().data.cast("B"))
            yield _Reference(chat, tokens, log_probs)


@dataclass(frozen=True, slots=True)
class Divergence(AskingMeasure):
    """The predictions of the edited model and of the base on the same replies.

    On the edited model's own replies, with ``p`` its prediction before a token and ``q`` that of
    the base: ``KL(p || q) = sum over the vocabulary of p log(p / q)``, in nats per token. ``mean``,
    ``p95`` (interpolated) and ``max`` are over tokens; what only the edited model would say is
    seen. The base reads the question without a prompt that the edit adds. An empty reply or an
    unfinished thought is unscored.

    On the base's replies: ``base_replies``, the mean of KL(base || edited) in nats per token, and
    ``perplexity``, ``exp`` of the mean negative log-likelihood under the edited model. Neither
    sees runaway text.

    All but the perplexity are exactly 0 for the unedited model. Predictions are those before
    temperature and other settings of decoding.

    Attributes:
        asking: The questions.
        max_tokens: Bound on the tokens of either kind of reply. Memory: ``max_tokens * vocab * 4``
            bytes, 1 GB for 2,000 tokens of 128,000 words, and three times the longest reply. As
            much is kept in a temporary file from :meth:`collect` to :meth:`finish`. Points that
            share batches, at most ``batch_size``, have such a file each, and together hold
            ``batch_size`` replies in memory.
        seed: Seed of the base's replies: one reference for all seeds, so that these can be
            compared.
        batch_size: Chats per forward pass, and the most points that share one; it changes speed,
            memory and the size of the temporary files only.
        references: The base's replies, made by :meth:`prepare`.
    """

    asking: Asking
    max_tokens: int = 2000
    seed: int = 0
    batch_size: int = field(default=8, compare=False)
    name: str = "divergence"
    references: Sequence[_Reference] = field(default=(), compare=False)

    version: ClassVar[int] = 2
    unit: ClassVar[str] = "nats per token"
    better: ClassVar[Better] = "low"

    @property
    def most_points(self) -> int:
        """How many points are measured at once at most, since the predictions of each are kept."""
        return self.batch_size

    def prepare(self, base: Subject) -> "Divergence":
        """Let the base reply, and keep its log-probabilities for the first ``max_tokens`` tokens.

        Replies are taken in random order; the last one is cut where the bound is reached.

        Raises:
            DataError: Every reply of the base is empty.
            NonFiniteError: It predicts NaN or infinity.
        """
        chats, _ = self.asking.chats(base, self.seed)
        require_replies(self.name, chats)
        chosen = first_tokens(base, chats, self.max_tokens)
        predicted = self._predicted(base, chosen, "base")
        # Cloned, or a slice would keep the whole response in memory.
        kept = [_Reference(chat, t.clone(), rows.clone()) for chat, t, rows in predicted]
        return replace(self, references=tuple(kept))

    def collect(self, subject: Subject, seed: int) -> _Spilled:
        """Read the base's replies, and keep what the edited model predicts on its own.

        Raises:
            NonFiniteError: The edited model predicts NaN or infinity.
            TensorMismatchError: It splits a reply into other tokens, or has another vocabulary.
            StorageError: The temporary file cannot be written.
        """
        chats, unscored = self.asking.chats(subject, seed)
        chosen = first_tokens(subject, chats, self.max_tokens)
        kept = _Spilled(chosen, unscored, self._on_base_replies(subject))
        for _, tokens, log_probs in self._predicted(subject, chosen, "edited model"):
            kept.append(tokens, log_probs)
        return kept

    def finish(self, base: Subject, collected: _Spilled) -> Findings:
        """Let the base read the edited model's replies, and compare.

        Raises:
            NonFiniteError: The base predicts NaN or infinity.
            TensorMismatchError: It splits a reply into other tokens, or has another vocabulary.
        """
        import torch

        found = [torch.empty(0, dtype=torch.float64)]
        predicted = self._predicted(base, collected.chats, "base")
        try:
            for edited, (chat, tokens, log_probs) in zip(collected, predicted, strict=True):
                _require_same_tokens(chat, tokens, edited.tokens)
                _require_same_vocabulary(log_probs, edited.log_probs)
                found.append(_divergences(edited.log_probs, log_probs))
        finally:
            collected.close()
        each = torch.cat(found)
        own = [
            Reading(f"{self.name}.{number}", value, n=len(each), unscored=collected.unscored)
            for number, value in _over_tokens(each).items()
        ]
        return Findings(readings=[*own, *collected.readings])

    def _predicted(self, subject: Subject, chats: Sequence[Chat], who: str) -> Iterator[_Reference]:
        """Yield the predictions on the first ``max_tokens`` tokens of replies."""
        left = self.max_tokens
        predictions = subject.predictions(chats, self.batch_size)
        for chat, (tokens, log_probs) in zip(chats, predictions, strict=True):
            if not bool(log_probs[:left].isfinite().all()):
                raise NonFiniteError(f"the {who} predicts NaN or infinity on a reference chat")
            yield _Reference(chat, tokens[:left], log_probs[:left])
            left -= len(tokens[:left])

    def _on_base_replies(self, subject: Subject) -> list[Reading]:
        """Return how far the edited model is from the base on the base's replies."""
        divergence, surprise, n = 0.0, 0.0, 0
        chats = [reference.chat for reference in self.references]
        predicted = self._predicted(subject, chats, "edited model")
        for reference, (chat, tokens, edited) in zip(self.references, predicted, strict=True):
            _require_same_tokens(chat, reference.tokens, tokens)
            _require_same_vocabulary(reference.log_probs, edited)
            divergence += float(_divergences(reference.log_probs, edited).sum())
            surprise -= float(edited.gather(1, tokens[:, None]).double().sum())
            n += len(tokens)
        if surprise / n > 700:  # exp overflows float64 at 709
            raise NonFiniteError(f"a perplexity of exp({surprise / n:.0f}) is not a number")
        return [
            Reading(f"{self.name}.base_replies", divergence / n, n=n),
            Reading(f"{self.name}.perplexity", math.exp(surprise / n), n=n, unit="perplexity"),
        ]


def _divergences(
    p: "Float[Tensor, 'seq vocab']", q: "Float[Tensor, 'seq vocab']"
) -> "Float64[Tensor, ' seq']":
    """Return KL(p || q) at each position, in nats."""
    import torch

    return (p.exp() * (p - q)).sum(dim=1, dtype=torch.float64)


def _over_tokens(each: "Float64[Tensor, ' seq']") -> dict[str, float | None]:
    """Return the statistics of numbers of tokens, or ``None`` for each if there are no tokens."""
    if len(each) == 0:
        return dict.fromkeys(("mean", "p95", "max"))
    found = {"mean": each.mean(), "p95": each.quantile(0.95), "max": each.max()}
    return {name: float(value) for name, value in found.items()}


def _require_same_tokens(
    chat: Chat, base: "Int[Tensor, ' seq']", edited: "Int[Tensor, ' other']"
) -> None:
    if not base.equal(edited):
        raise TensorMismatchError(
            f"the response {chat[-1]['content'][:60]!r} is split into other tokens after the edit"
        )


def _require_same_vocabulary(
    base: "Float[Tensor, 'seq vocab']", edited: "Float[Tensor, 'seq other']"
) -> None:
    ours, theirs = base.shape[1], edited.shape[1]
    if ours != theirs:
        raise TensorMismatchError(
            f"the base has a vocabulary of {ours}, the edited model one of {theirs}"
        )
