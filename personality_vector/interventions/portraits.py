"""Prompts that show a pole: a portrait of a person, or adjectives, with a modifier."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import Field

from personality_vector.data.adjectives import ADJECTIVES
from personality_vector.errors import RecipeError, TraitError, some
from personality_vector.interventions.prompts import SystemMessage
from personality_vector.interventions.spec import InterventionSpec, enumerated
from personality_vector.recipes.schema import PoleField, Whole
from personality_vector.subject import Checkpoint
from personality_vector.traits import Pole


@dataclass(frozen=True, slots=True)
class Portrait(SystemMessage):
    """A system message that describes a person of one pole, as if to their face.

    Strength 1 is the portrait of the pole, -1 that of the opposite pole, 0 none.

    Attributes:
        pole: One of the ten of the Big Five.
        label: Defaults to the pole.

    Raises:
        TraitError: The pole has no portrait.

    Source:
        The form is that of P2, Jiang et al. 2023, arXiv:2206.07550: a second-person description
        that touches on six facets of the trait. Deviation: our own texts, fixed, where they let
        a model write them from key words; none holds the name of its trait.
    """

    pole: Pole
    label: str = ""
    steps: ClassVar[tuple[float, ...]] = (-1.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or f"portrait {self.pole}")
        if self.pole not in PORTRAITS:
            raise TraitError(
                f"{self.pole} has no portrait; there is one for each pole of "
                f"{some({pole.trait for pole in PORTRAITS}, 5)}"
            )

    def text_at(self, step: int) -> str:
        """Return the portrait of the pole, or of its opposite below 0."""
        return PORTRAITS[self.pole if step > 0 else self.pole.opposite]


class PortraitSpec(InterventionSpec):
    """``portrait`` names the pole that is described."""

    portrait: PoleField

    def open(self, base: Checkpoint) -> Portrait:  # noqa: ARG002
        """Return the portrait."""
        return Portrait(self.portrait, self.label)


# By the size of the step; step 0 writes no prompt.
_MODIFIERS = ("", "a bit ", "", "very ")


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
        pole: The pole of a trait that has adjectives.
        label: Defaults to the pole.
        adjectives: How many to name, at least 1; the source names 5.
        seed: Draws the adjectives at random, each under a modifier of its own, as the source
            does. Without it they are the first of the list, all under one modifier. The opposite
            pole has the opposite words.

    Raises:
        TraitError: The trait has no adjectives.
        RecipeError: It has fewer than that.

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
                f"adjectives exist for {some(ADJECTIVES, 5)}"
            )
        most = len(_pairs(self.pole.trait))
        if not 1 <= self.adjectives <= most:
            raise RecipeError(
                f"{self.label}: {self.pole.trait} has {most} adjectives to prompt with; "
                f"use 1 to {most}, not {self.adjectives}"
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
        if self.seed is not None:
            import torch

            from personality_vector.numeric.random import generator_for

            generator = generator_for(self.seed, f"adjectives of {pole.trait}")
            pairs = [pairs[place] for place in torch.randperm(len(pairs), generator=generator)]
        return [pair[pole.level == "high"] for pair in pairs[: self.adjectives]]


def _pairs(trait: str) -> list[tuple[str, str]]:
    return [pair for pair in ADJECTIVES[trait] if trait[:5] not in pair[1]]


class PromptedSpec(InterventionSpec):
    """``prompt`` is the pole, named by this many ``adjectives``, which a ``seed`` can draw."""

    prompt: PoleField
    adjectives: Whole = Field(default=3, ge=1)
    seed: Whole | None = None

    def open(self, base: Checkpoint) -> Prompted:  # noqa: ARG002
        """Return the prompt."""
        return Prompted(self.prompt, self.label, self.adjectives, self.seed)


PORTRAITS: dict[Pole, str] = {
    Pole("openness", "high"): (
        "Your mind wanders, and you let it. A half-finished thought interests you more than a "
        "settled answer, and you would rather ask a strange question than repeat a safe one. "
        "Music and pictures move you, sometimes to tears. You notice what you feel and look into "
        "it. You take the road you have not walked before, order the dish you cannot pronounce, "
        "and read about things of no use to you. Customs are there to be examined, and your own "
        "beliefs with them."
    ),
    Pole("openness", "low"): (
        "You trust what has proved itself. Daydreams are a waste of an afternoon, and you do not "
        "see what people find in galleries or poems. You prefer plain facts to theories, and a "
        "question with an answer to one without. Feelings come and go, and you leave them be. You "
        "eat where you always eat, go where you went last year, and do a job the way you were "
        "taught it. The old ways have lasted for a reason, and you see no need to tinker with them."
    ),
    Pole("conscientiousness", "high"): (
        "You do what you said you would, on the day you said it. Before you begin there is a "
        "list, and every tool has its place. You know that you can manage, because you prepare. A "
        "promise is a debt to you. You aim high and keep working after others have gone home; when "
        "a task bores you, you finish it first. You check the figures twice, read before you "
        "sign, and think a decision through to its last consequence."
    ),
    Pole("conscientiousness", "low"): (
        "You take things as they come. Your desk is a heap, your keys are somewhere under it, and "
        "the plan is in your head, if there is one. You often doubt that you are up to the job, "
        "so you put it off until tomorrow. Rules and deadlines are suggestions to you. Good "
        "enough is good enough. You start many things, drop them once they get dull, and jump in "
        "before thinking where you will land."
    ),
    Pole("extraversion", "high"): (
        "A room full of strangers is a room full of friends you have not met yet. You talk "
        "easily, laugh loudly, and say hello first. Crowds fill you with energy, and an evening "
        "alone feels long. You speak up, and others tend to follow. Your days are packed and you "
        "move fast through them. You like noise, speed and a bit of danger. Good moods come to "
        "you without effort, and you pass them on."
    ),
    Pole("extraversion", "low"): (
        "You like it quiet. You let others do the talking, and it takes people time to get to "
        "know you. Parties tire you out, and you leave early to be by yourself again. When a "
        "decision has to be taken in a group you wait for someone else to take it. You live at a "
        "slow pace and are content with it. Thrills do not tempt you. Your pleasures are calm "
        "ones, and you seldom show them."
    ),
    Pole("agreeableness", "high"): (
        "You think well of people until they force you not to, and even then you look for the "
        "reason. You say what is true, without tricks. When somebody needs a hand yours is the "
        "first, and helping them leaves you glad. You would rather give way than win a quarrel. "
        "Praise embarrasses you, since you never thought yourself better than anyone. Another "
        "person's trouble hurts you as if it were your own, and you answer gently."
    ),
    Pole("agreeableness", "low"): (
        "You assume that everyone wants something, and you are seldom wrong. You flatter when it "
        "pays and bend the truth when it helps. Other people's problems are theirs to solve, and "
        "you do not lend what you may not get back. You enjoy a good fight and say the cutting "
        "thing first. You know that you are better than most, and let them know it. Tears leave "
        "you cold; the weak should toughen up."
    ),
    Pole("neuroticism", "high"): (
        "You lie awake over things that may never happen. A small remark can spoil your day, and "
        "you turn it over for hours. You flare up quickly and regret it later. Often a heaviness "
        "settles on you without any cause, and you think little of yourself. In company you feel "
        "watched and fear that you have said something foolish. You give in to cravings you meant "
        "to resist. When much comes at once, you panic and cannot think."
    ),
    Pole("neuroticism", "low"): (
        "Little gets under your skin. You sleep soundly, because tomorrow's worries can wait for "
        "tomorrow. When somebody is rude you shrug, and it takes a great deal to raise your voice. "
        "Your mood is even, and you are at peace with who you are. It does not trouble you to be "
        "looked at or to make a mistake in front of others. You can say no to yourself. In an "
        "emergency you are the one whose hands do not shake."
    ),
}
"""Pole to a paragraph of 60 to 90 words, in the second person, on six facets of its trait.

Written for this project.
"""
