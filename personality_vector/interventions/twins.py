"""Other prompts in the place of those that are asked: the uncreative twin of each."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from personality_vector.data.creativity import read_creativity_pairs
from personality_vector.data.statements import normalised
from personality_vector.errors import DataError
from personality_vector.interventions.prompts import edited
from personality_vector.interventions.spec import BaseIntervention, InterventionSpec, require_step
from personality_vector.recipes.schema import LocalPath
from personality_vector.subject import Chat, Checkpoint, Subject


@dataclass(frozen=True, slots=True)
class TwinPrompts(BaseIntervention):
    """Asks the uncreative twin of every prompt; strength 1 asks the twins, 0 the prompts.

    The answers are stored and rated as answers to the prompts, so that they pair with the others.

    Attributes:
        twins: Prompts to what is asked instead.
        label: Name in tables and figures.

    Source:
        Olson et al. 2024, arXiv:2412.06060: story prompts, and versions that were made uncreative.
    """

    twins: Mapping[str, str]
    label: str = "uncreative twins"
    steps: ClassVar[tuple[float, ...]] = (0.0, 1.0)

    @contextmanager
    def applied(self, subject: Subject, strength: float) -> Generator[Subject]:
        """Put its twin in the place of every message of the user.

        Raises:
            RecipeError: It does not have this step.
            NonFiniteError: The strength is NaN or infinite.
            DataError: A message has no twin; raised once a chat is asked.
        """
        require_step(self, strength)
        known = {normalised(text): twin for text, twin in self.twins.items()}
        yield edited(subject, partial(self._exchanged, known)) if strength else subject

    def _exchanged(self, known: Mapping[str, str], chat: Chat) -> Chat:
        return [
            {**message, "content": self._twin(known, message["content"])}
            if message["role"] == "user"
            else message
            for message in chat
        ]

    def _twin(self, known: Mapping[str, str], text: str) -> str:
        try:
            return known[normalised(text)]
        except KeyError:
            raise DataError(
                f"{self.label}: {text[:60]!r} has no uncreative twin; let every measure ask the "
                "prompts of the same file, with pairs"
            ) from None


class TwinsSpec(InterventionSpec):
    """``twins`` is a file of creative and uncreative prompts, as in the key ``pairs``."""

    twins: LocalPath

    def open(self, base: Checkpoint) -> TwinPrompts:  # noqa: ARG002
        """Return the prompts.

        Raises:
            DataError: The file cannot be read, or is not one of pairs.
        """
        pairs = read_creativity_pairs(self.twins)
        return TwinPrompts({pair.creative: pair.uncreative for pair in pairs}, self.label)
