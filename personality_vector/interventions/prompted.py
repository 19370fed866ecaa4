"""A personality by adjectives: ``You are very friendly, talkative and bold.``."""

import math
from dataclasses import dataclass

import torch

from personality_vector.data.adjectives import ADJECTIVES
from personality_vector.errors import RecipeError, TraitError, some
from personality_vector.interventions.system_prompt import SystemPrompt, enumerated
from personality_vector.numeric.random import generator_for
from personality_vector.subject.protocols import require_finite
from personality_vector.traits import Pole

_MODIFIERS = ("", "a bit ", "", "very ")
"""By grade; grade 0 writes no prompt."""


@dataclass(frozen=True, slots=True)
class Prompted(SystemPrompt):
    """A system prompt that names a pole: ``You are very friendly, talkative and bold.``.

    Strength is rounded to a grade from -3 to 3, halves away from 0: 1 is "a bit", 2 has no
    modifier, 3 is "very"; below 0 it names the opposite pole.

    >>> Prompted(Pole.parse("neuroticism:high")).sentence(-1.0)
    'You are a bit relaxed, at ease and easygoing.'
    >>> Prompted(Pole.parse("neuroticism:high"), adjectives=2, seed=0).sentence(3.0)
    'You are very self-conscious and very irritable.'

    Attributes:
        pole: Of a trait that has adjectives.
        label: Defaults to the pole.
        adjectives: How many of them, at least 1; the source has 5.
        seed: Draws the adjectives at random, each under a modifier of its own, as the source
            does. Without it they are the first of the list, all under one modifier. The opposite
            pole has the opposite words.

    Raises:
        TraitError: The trait has no adjectives.
        RecipeError: It has not as many.

    Source:
        Adjectives and modifiers of Serapio-Garcia et al. 2023, arXiv:2307.00184, as the prompt
        baseline of Personality Vector, arXiv:2509.19727, has them: five random adjectives, each
        with its modifier, which here is ``adjectives=5`` and a seed. Deviations: our own sentence;
        an adjective that holds the trait's own name is left out, as there, but its opposite too.
    """

    pole: Pole
    label: str = ""
    adjectives: int = 3
    seed: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or f"prompt {self.pole}")
        if self.pole.trait not in ADJECTIVES:
            raise TraitError(
                f"{self.pole.trait} has no adjectives to prompt with; "
                f"there are some for {some(ADJECTIVES, 5)}"
            )
        most = len(_pairs(self.pole.trait))
        if not 1 <= self.adjectives <= most:
            raise RecipeError(
                f"{self.label}: {self.pole.trait} has 1 to {most} adjectives to prompt with, "
                f"not {self.adjectives}"
            )

    def sentence(self, strength: float) -> str:
        """Return the system prompt of a strength in [-3, 3]; "" at grade 0.

        Raises:
            RecipeError: The strength is beyond.
            NonFiniteError: It is NaN or infinite.
        """
        require_finite(self.label, strength)
        if abs(strength) > len(_MODIFIERS) - 1:
            raise RecipeError(
                f"{self.label}: a prompt has strengths from -3 (very, opposite pole) to 3 (very), "
                f"got {strength}"
            )
        grade = math.floor(abs(strength) + 0.5)
        words = self._words(self.pole if strength > 0 else self.pole.opposite)
        modifier = _MODIFIERS[grade]
        # One modifier in front of the whole list, or one in front of each word.
        listed = f"{modifier}{enumerated(words)}"
        if self.seed is not None:
            listed = enumerated([f"{modifier}{word}" for word in words])
        return f"You are {listed}." if grade else ""

    def _words(self, pole: Pole) -> list[str]:
        pairs = _pairs(pole.trait)
        order = list(range(len(pairs)))
        if self.seed is not None:
            generator = generator_for(self.seed, f"adjectives of {pole.trait}")
            order = torch.randperm(len(pairs), generator=generator).tolist()
        return [pairs[place][pole.level == "high"] for place in order[: self.adjectives]]


def _pairs(trait: str) -> list[tuple[str, str]]:
    return [pair for pair in ADJECTIVES[trait] if trait[:5] not in pair[1]]
