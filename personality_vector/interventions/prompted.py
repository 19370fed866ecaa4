"""A personality by adjectives: ``You are very friendly, talkative and bold.``."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from personality_vector.data.adjectives import ADJECTIVES
from personality_vector.errors import RecipeError, TraitError, some
from personality_vector.interventions.spec import InterventionSpec
from personality_vector.interventions.system_message import SystemMessage, enumerated
from personality_vector.recipes.fields import PoleField, Whole
from personality_vector.traits import Pole

if TYPE_CHECKING:
    from personality_vector.checkpoint import Checkpoint

_MODIFIERS = ("", "a bit ", "", "very ")
"""By the size of the step; step 0 writes no prompt."""


@dataclass(frozen=True, slots=True)
class Prompted(SystemMessage):
    """A system message that names a pole: ``You are very friendly, talkative and bold.``.

    Strengths are the whole numbers from -3 to 3: 1 is "a bit", 2 has no modifier, 3 is "very";
    below 0 it names the opposite pole.

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
    steps: ClassVar[tuple[float, ...]] = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)

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

    def text_at(self, step: int) -> str:
        """Return the prompt of a step: one modifier for all words, or with a seed one for each."""
        words = self._words(self.pole if step > 0 else self.pole.opposite)
        modifier = _MODIFIERS[abs(step)]
        if self.seed is None:
            return f"You are {modifier}{enumerated(words)}."
        return f"You are {enumerated([f'{modifier}{word}' for word in words])}."

    def _words(self, pole: Pole) -> list[str]:
        pairs = _pairs(pole.trait)
        order = list(range(len(pairs)))
        if self.seed is not None:
            import torch

            from personality_vector.numeric.random import generator_for

            generator = generator_for(self.seed, f"adjectives of {pole.trait}")
            order = torch.randperm(len(pairs), generator=generator).tolist()
        return [pairs[place][pole.level == "high"] for place in order[: self.adjectives]]


def _pairs(trait: str) -> list[tuple[str, str]]:
    return [pair for pair in ADJECTIVES[trait] if trait[:5] not in pair[1]]


class PromptedSpec(InterventionSpec):
    """``prompt`` names a pole by so many ``adjectives``, which a ``seed`` draws."""

    prompt: PoleField
    adjectives: Whole = Field(default=3, ge=1)
    seed: Whole | None = None

    def read(self, base: "Checkpoint") -> Prompted:  # noqa: ARG002
        """Return the prompt."""
        return Prompted(self.prompt, self.label, self.adjectives, self.seed)
