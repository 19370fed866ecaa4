"""An interview: open questions whose answers are rated by judges, now or later."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from pydantic import model_validator

from personality_vector.data.personas import Persona, rubric_of
from personality_vector.errors import DataError
from personality_vector.judges.spec import AnyJudge
from personality_vector.measures.spec import (
    Asking,
    AskingMeasure,
    AskingSpec,
    Traits,
    default_questions,
)
from personality_vector.recipes.reading import read_recipe
from personality_vector.subject import Answer, Findings, Judge, Rubric, Subject, rated


class InterviewSpec(AskingSpec):
    """Answers to open questions, rated by ``judges`` for ``traits`` or for a ``persona``.

    Items about a trait that is not rated are not asked. Where nothing says what is asked, and all
    traits are of the Big Five, it is two questions for each of their facets.
    """

    traits: Traits | None = None
    judges: tuple[AnyJudge, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _about_facets(cls, data: Any) -> Any:
        return {**data, **default_questions(data)} if isinstance(data, Mapping) else data

    @model_validator(mode="after")
    def _rated_for_something(self) -> "InterviewSpec":
        if self.traits is None and self.persona is None:
            raise ValueError("needs traits to rate the answers for, such as traits: [extraversion]")
        return self

    def open(self) -> "Interview":
        """Read the instrument and what the judges learn from.

        Raises:
            RecipeError: A file is missing or not what it should be.
            DataError: A judge cannot rate what the answers are rated for.
        """
        judges, asking = tuple(spec.open() for spec in self.judges), self.asking()
        if self.traits is None and self.persona is not None:
            rubrics: tuple[Rubric, ...] = (read_recipe(self.persona, Persona).as_rubric(),)
        else:
            rubrics = tuple(map(rubric_of, self.traits or ()))
        for rubric in rubrics:
            for judge in judges:
                rated(judge, rubric, [])  # refused before a model is loaded, if it cannot
            if not any(item.trait in (None, rubric.trait) for item in asking.instrument.items):
                raise DataError(
                    f"{self.called}: {self.instrument}: no item is about {rubric.trait}"
                )
        return Interview(
            asking.about([rubric.trait for rubric in rubrics]), rubrics, judges, self.called
        )


@dataclass(frozen=True, slots=True)
class Interview(AskingMeasure):
    """Answers to the items of an instrument.

    Its number is the mean score of a judge, on that judge's scale; the interval is that of the
    mean over items and samples, both drawn again (bootstrap).

    Attributes:
        asking: The questions, and how replies are drawn.
        rubrics: What every answer is rated for, unless its item is about another trait.
        judges: Who rates. Judges do not change an answer, so they can be changed after it was given
            and are not part of the identity; rubrics only choose what is asked.
    """

    asking: Asking
    rubrics: Sequence[Rubric] = field(compare=False)
    judges: Sequence[Judge] = field(default=(), compare=False)
    name: str = "interview"

    unit: ClassVar[str] = "score"

    def collect(self, subject: Subject, seed: int) -> list[Answer]:
        """Return the answers."""
        return [
            one.as_answer(() if one.item.trait is None else (one.item.trait,))
            for one in self.asking(subject, seed)
        ]

    def finish(self, base: Subject, collected: list[Answer]) -> Findings:  # noqa: ARG002
        """Return the answers, which judges turn into numbers."""
        return Findings(answers=collected)
