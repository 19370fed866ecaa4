"""Instruments, personas and rubrics: what is asked, and what the answers are rated for."""

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from personality_vector.data.statements import normalised
from personality_vector.errors import RecipeError, some
from personality_vector.lab import BUILTIN, PERSONAS, builtin
from personality_vector.recipes.reading import read_recipe
from personality_vector.recipes.schema import Name, PoleField, Recipe, Words
from personality_vector.subject import Rubric
from personality_vector.traits import BIG_FIVE, Pole, Trait

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]

COHERENCE = Rubric(
    "coherence",
    description="is understandable, well-formed language which responds to the question.",
    opposite=(
        "cannot be understood, repeats itself endlessly, or has nothing to do with the question."
    ),
)
"""A judge recognises it by its name and rates the language of an answer, not its manner."""

CREATIVITY = Rubric(
    "creativity",
    "It is original: it finds ideas, images or turns that few would think of, and makes something "
    "of them.",
    "It says what anybody would say, in the most obvious way, and adds no idea of its own.",
    pole=Pole("creativity", "high"),
)
"""What stories and other answers to open prompts are compared by."""

PERSONA = "persona.yaml"
"""The file of a folder of elicited chats with the persona as it was asked."""

_GRADES = {
    "mild": "Let it show only a little, now and then.",
    "strong": "Let it show in the extreme, in every sentence.",
}


class Item(Recipe):
    """One question.

    Attributes:
        id: Unique in its instrument.
        text: What the model is asked, as the user's message.
        trait: What the answer is judged for; ``None`` means every trait of the evaluation.
        keyed: ``+1`` if saying yes to what the question describes points to the high end of the
            trait, ``-1`` if to the low end. A judge that reads question and answer ignores it.
        facet: Which side of the trait it is about, where that is known.
    """

    id: _Name
    text: _Text
    trait: Name | None = None
    keyed: Literal[1, -1] = 1
    facet: Name | None = Field(default=None, exclude_if=lambda value: value is None)


class Instrument(Recipe):
    """A set of items that are asked one by one, each in a new chat, after ``system`` if given."""

    name: _Name
    version: _Text
    system: _Text | None = None
    items: Annotated[tuple[Item, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _unique_ids(self) -> "Instrument":
        counts = Counter(item.id for item in self.items)
        repeated = [name for name, count in counts.items() if count > 1]
        if repeated:
            raise ValueError(f"two items have the same id: {some(repeated)}")
        return self


class InstructionPair(Recipe):
    """Two system prompts: one for the persona, one for its opposite or for a neutral reply."""

    positive: Words
    negative: Words

    @model_validator(mode="after")
    def _differ(self) -> "InstructionPair":
        if normalised(self.positive) == normalised(self.negative):
            raise ValueError("positive and negative are the same instruction")
        return self


class Questions(Recipe):
    """The questions for extracting a vector, and other questions for evaluating it."""

    extract: tuple[Words, ...] = Field(min_length=1)
    evaluate: tuple[Words, ...] = ()

    @model_validator(mode="after")
    def _distinct(self) -> "Questions":
        counts = Counter(map(normalised, (*self.extract, *self.evaluate)))
        repeated = [text for text, count in counts.items() if count > 1]
        if repeated:
            raise ValueError(f"is asked twice, in extract, evaluate or both: {repeated[0]!r}")
        return self


class Persona(Recipe):
    """Everything that a persona vector is made from, except the model.

    Attributes:
        name: Lower case, such as ``extraversion`` or ``startup-founder``.
        description: What positive answers show; the judge's 100.
        opposite: What negative answers show; the judge's 0. Without it, 0 means no sign of the
            description.
        pole: What positive answers show, where that is one end of a trait.
        instructions: Contrastive pairs of system prompts.
        questions: User messages; none is in both lists.
        rubric: Anything else the judge should know, in words that fit both ends.

    Source:
        Persona vectors, Chen et al. 2025, arXiv:2507.21509: 5 pairs, 20 questions for extraction
        and 20 for evaluation. Deviation: an instruction is the whole system prompt; they put
        "You are a <adjective> assistant." in front of it.
    """

    name: Name
    description: Words
    opposite: Words | None = None
    pole: PoleField | None = None
    instructions: tuple[InstructionPair, ...] = Field(min_length=1)
    questions: Questions
    rubric: Words | None = None

    @model_validator(mode="after")
    def _has_two_ends(self) -> "Persona":
        if self.pole is not None and self.opposite is None:
            raise ValueError(f"opposite is missing: say what {self.pole.opposite} looks like")
        repeated = [p for p, count in Counter(self.instructions).items() if count > 1]
        if repeated:
            raise ValueError(f"an instruction pair is given twice: {repeated[0].positive!r}")
        return self

    @property
    def label(self) -> str:
        """The pole, or the name if there is no pole."""
        return str(self.pole or self.name)

    def as_rubric(self) -> Rubric:
        """Return what a judge is told: the upper end of its scale is the positive side."""
        return Rubric(
            self.label, self.description, self.opposite, note=self.rubric or "", pole=self.pole
        )

    def at(self, pole: Pole | None) -> "Persona":
        """Return the persona whose positive side is ``pole``; ``None`` leaves it as it is.

        Raises:
            RecipeError: The persona has another trait, or no pole.
        """
        if pole in (None, self.pole):
            return self
        if self.pole is None or pole != self.pole.opposite:
            of = f"of {self.pole}" if self.pole else "not of a pole"
            raise RecipeError(f"pole {pole}: the persona {self.name} is {of}")
        swapped: dict[str, Any] = {
            "description": self.opposite,
            "opposite": self.description,
            "pole": pole,
            "instructions": tuple(
                InstructionPair(positive=pair.negative, negative=pair.positive)
                for pair in self.instructions
            ),
        }
        return self.model_copy(update=swapped)

    def graded(self, grade: str) -> "Persona":
        """Return the persona with system prompts that ask for a mild or a strong form of it.

        ``normal`` leaves it as it is. Prompts for a neutral reply have no degree.
        """
        if grade == "normal":
            return self
        form = _GRADES[grade]
        graded = tuple(
            InstructionPair(
                positive=f"{pair.positive} {form}",
                negative=f"{pair.negative} {form}" if self.opposite else pair.negative,
            )
            for pair in self.instructions
        )
        return self.model_copy(update={"instructions": graded})


def open_persona(path: Path, pole: Pole | None = None) -> Persona:
    """Return the persona of a file or of a folder of elicited chats, turned to ``pole``.

    Raises:
        RecipeError: It is not a persona, or one of another pole.
    """
    file = path / PERSONA if (path / PERSONA).is_file() else path
    return read_recipe(file, Persona).at(pole)


def evaluation_instrument(persona: Persona) -> Instrument:
    """Return the persona's evaluation questions, which no vector was made from, as an instrument.

    Its items have no trait: they are rated for the rubric of the persona, at either end.

    Raises:
        RecipeError: It has no such questions.
    """
    asked = persona.questions.evaluate
    if not asked:
        raise RecipeError(
            f"the persona {persona.name} has no questions for evaluation; add questions.evaluate"
        )
    return Instrument(
        name=persona.name,
        version="1",
        items=tuple(Item(id=f"q{i:02}", text=text) for i, text in enumerate(asked, start=1)),
    )


@cache
def rubric_of(trait: Trait) -> Rubric:
    """Return the rubric of the high end of a trait.

    The Big Five are described as in the shipped personas, creativity in words of our own, and
    other traits by their name alone.

    Raises:
        RecipeError: A shipped persona is missing.
    """
    for rubric in (COHERENCE, CREATIVITY):
        if trait == rubric.trait:
            return rubric
    high = Pole(trait, "high")
    if trait not in BIG_FIVE:
        return Rubric(trait, pole=high)
    persona = open_persona(builtin(f"{BUILTIN}{PERSONAS}/{trait}.yaml"), high)
    return Rubric(trait, persona.description, persona.opposite, persona.rubric or "", high)
