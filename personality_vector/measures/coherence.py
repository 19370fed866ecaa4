"""Coherence: whether the replies are still language, beside those of the unedited model."""

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from personality_vector.data.texts import distinct_n
from personality_vector.errors import DataError
from personality_vector.measures.asking import Asking, AskingSpec
from personality_vector.measures.spec import BaseMeasure
from personality_vector.subject.protocols import Better, Findings, Reading

if TYPE_CHECKING:
    from collections.abc import Sequence

    from personality_vector.subject.chat import Chat
    from personality_vector.subject.subject import Subject


class CoherenceSpec(AskingSpec):
    """Fluency and variety of replies, relative to the base's own."""

    def open(self) -> "Coherence":
        """Read the instrument.

        Raises:
            RecipeError: It is missing or not one.
        """
        return Coherence(self.asking(), name=self.called)


class _Reference(NamedTuple):
    """The base's own replies: their mean log-likelihood per token, and their variety."""

    likelihood: float
    variety: float


@dataclass(frozen=True, slots=True)
class Coherence(BaseMeasure):
    """Two numbers that fall as replies stop being language; 1 is as good as the base's own.

    ``fluency``: perplexity of the base's replies over that of these, both under the base, at most
    1. ``variety``: share of distinct word pairs over that of the base's replies, at most 1. Read
    the lower of the two, since each is blind to what the other sees: a loop is likely text, and
    word salad is varied. Replies without any text are unscored.

    Attributes:
        asking: The questions, and how replies are drawn.
        seed: Seed of the base's replies: one reference for all seeds.
        batch_size: Replies per forward pass; it changes speed and memory only.
        reference: Made by :meth:`prepare`.
    """

    asking: Asking
    seed: int = 0
    batch_size: int = field(default=32, compare=False)
    name: str = "coherence"
    reference: _Reference | None = field(default=None, compare=False)

    unit: ClassVar[str] = "share of the base"
    scale: ClassVar[tuple[float, float]] = (0.0, 1.0)
    better: ClassVar[Better] = "high"

    def prepare(self, base: "Subject") -> "Coherence":
        """Let the base reply, and keep how likely and how varied its replies are.

        Raises:
            DataError: It says nothing of two words.
        """
        chats = self.collect(base, self.seed)
        likelihood, variety = self._likelihood(base, chats), _variety(chats)
        if likelihood is None or not variety:
            raise DataError(
                f"{self.name}: the base never replies in as much as two words, so there is "
                "nothing to compare with; ask it other questions"
            )
        return replace(self, reference=_Reference(likelihood, variety))

    def collect(self, subject: "Subject", seed: int) -> "list[Chat]":
        """Return the questions, each with its reply."""
        from personality_vector.subject.chat import answered, question

        system = self.asking.instrument.system
        return [
            answered(question(item.text, system=system), reply.text)
            for item, _, reply in self.asking(subject, seed)
        ]

    def finish(self, base: "Subject", collected: "list[Chat]") -> Findings:
        """Score the replies with the unedited model.

        Raises:
            DataError: :meth:`prepare` has not been called.
        """
        if self.reference is None:
            raise DataError(f"{self.name}: call prepare() first")
        likelihood, variety = self._likelihood(base, collected), _variety(collected)
        if likelihood is not None:
            likelihood = math.exp(min(0.0, likelihood - self.reference.likelihood))
        if variety is not None:
            variety = min(1.0, variety / self.reference.variety)
        found = {"fluency": likelihood, "variety": variety}
        n = len(_spoken(collected))
        return Findings(
            readings=[
                Reading(f"{self.name}.{number}", value, n=n, unscored=len(collected) - n)
                for number, value in found.items()
            ]
        )

    def _likelihood(self, base: "Subject", chats: "Sequence[Chat]") -> float | None:
        """Return the mean over replies of their mean log-likelihood per token, in nats."""
        spoken = _spoken(chats)
        if not spoken:
            return None
        return float(base.log_likelihood(spoken, self.batch_size).double().mean())


def _spoken(chats: "Sequence[Chat]") -> "list[Chat]":
    return [chat for chat in chats if chat[-1]["content"].strip()]


def _variety(chats: "Sequence[Chat]") -> float | None:
    return distinct_n([chat[-1]["content"] for chat in chats], 2)
