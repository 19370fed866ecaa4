"""Coherence: whether the replies are still language, compared with the unedited model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from personality_vector.data.texts import distinct_n
from personality_vector.errors import DataError
from personality_vector.measures.spec import Asking, AskingMeasure, AskingSpec
from personality_vector.subject import Better, Chat, Findings, Reading, Subject


class CoherenceSpec(AskingSpec):
    """Fluency and variety of replies, relative to the base's own."""

    def open(self) -> "Coherence":
        """Read the instrument.

        Raises:
            RecipeError: It is missing or not one.
        """
        return Coherence(self.asking(), name=self.called)


@dataclass(frozen=True, slots=True)
class Coherence(AskingMeasure):
    """Two numbers that fall as replies stop being language; 1 is as good as the base's own.

    ``fluency``: perplexity of the base's replies over that of these, both under the base, at most
    1. ``variety``: share of distinct word pairs over that of the base's replies, at most 1. Read
    the lower of the two: a loop is likely text, and word salad is varied, so each number misses
    what the other shows. Replies without any text are unscored.

    Attributes:
        asking: The questions, and how replies are drawn.
        seed: Seed of the base's replies: one reference for all seeds.
        batch_size: Replies per forward pass; it changes speed and memory only.
        reference: Mean log-likelihood per token and variety of the base's replies, in nats and as a
            share; made by :meth:`prepare`.
    """

    asking: Asking
    seed: int = 0
    batch_size: int = field(default=32, compare=False)
    name: str = "coherence"
    reference: tuple[float, float] | None = field(default=None, compare=False)

    unit: ClassVar[str] = "share of the base"
    scale: ClassVar[tuple[float, float]] = (0.0, 1.0)
    better: ClassVar[Better] = "high"

    def prepare(self, base: Subject) -> "Coherence":
        """Let the base reply, and keep how likely and how varied its replies are.

        Raises:
            DataError: No reply of the base has two words.
        """
        likelihood, variety, _ = self._measured(base, self.collect(base, self.seed))
        if likelihood is None or not variety:
            raise DataError(
                f"{self.name}: the base never replies with two words or more, so there is "
                "nothing to compare replies with; ask it other questions"
            )
        return replace(self, reference=(likelihood, variety))

    def collect(self, subject: Subject, seed: int) -> list[Chat]:
        """Return the questions, each with its reply."""
        return [one.answered for one in self.asking(subject, seed)]

    def finish(self, base: Subject, collected: list[Chat]) -> Findings:
        """Score the replies with the unedited model.

        Raises:
            DataError: :meth:`prepare` has not been called.
        """
        if self.reference is None:
            raise DataError(f"{self.name}: call prepare() first")
        likelihood, variety, n = self._measured(base, collected)
        usual, usual_variety = self.reference
        found = {
            "fluency": None if likelihood is None else math.exp(min(0.0, likelihood - usual)),
            "variety": None if variety is None else min(1.0, variety / usual_variety),
        }
        return Findings(
            readings=[
                Reading(f"{self.name}.{number}", value, n=n, unscored=len(collected) - n)
                for number, value in found.items()
            ]
        )

    def _measured(
        self, base: Subject, chats: Sequence[Chat]
    ) -> tuple[float | None, float | None, int]:
        """Return the mean likelihood and the variety of the replies, and how many have a text.

        The likelihood is the mean over replies of their mean log-likelihood per token, in nats.
        """
        texts = [chat[-1]["content"] for chat in chats]
        spoken = [chat for chat, text in zip(chats, texts, strict=True) if text.strip()]
        found = base.log_likelihood(spoken, self.batch_size).double() if spoken else None
        return None if found is None else float(found.mean()), distinct_n(texts, 2), len(spoken)
