"""Likelihood: a trait measured without generation or a judge, by how likely statements are."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from pydantic import Field

from personality_vector.data.statements import Part, Statement, of_both_poles, read_statements
from personality_vector.errors import DataError, LengthError, NonFiniteError
from personality_vector.lab import BIG_FIVE_STATEMENTS, builtin
from personality_vector.measures.spec import QUESTION, BaseMeasure, MeasureSpec, Traits
from personality_vector.numeric.statistics import Z95
from personality_vector.recipes.schema import LocalPath, Real, Whole, Words
from personality_vector.subject import (
    Findings,
    Observation,
    Reading,
    Subject,
    answered,
    question,
)
from personality_vector.traits import BIG_FIVE, Pole, Trait


class LikelihoodSpec(MeasureSpec):
    """How much likelier the model finds the high end of a trait than the low end.

    ``statements`` are read from ``part``; ``limit`` takes that many of each pole.
    """

    traits: Traits = BIG_FIVE
    statements: LocalPath = Field(default_factory=lambda: builtin(BIG_FIVE_STATEMENTS))
    held_out: Real = Field(default=0.2, gt=0.0, lt=1.0)
    part: Part = "held_out"
    limit: Whole | None = Field(default=None, ge=1)
    question: Words = QUESTION
    system: Words | None = None
    batch_size: Whole = Field(default=32, ge=1)

    def open(self) -> "Likelihood":
        """Read the statements.

        Raises:
            DataError: A file is missing or unreadable, or a trait or pole has no statements.
        """
        found = read_statements(self.statements, part=self.part, held_out=self.held_out)
        poles = of_both_poles(found, self.traits, f"{self.statements}: no {self.part} statements")
        return Likelihood(
            tuple(statement for pole in poles.values() for statement in pole[: self.limit]),
            self.question,
            self.system,
            self.batch_size,
            self.called,
        )

    def of_trait(self, trait: Trait) -> "LikelihoodSpec":
        """Return the same measure of one trait alone."""
        return self.model_copy(update={"traits": (trait,)})


@dataclass(frozen=True, slots=True)
class Likelihood(BaseMeasure):
    """Teacher-forced likelihood of statements as answers to ``question``.

    The number of a trait is the mean over high-pole statements of their mean log-likelihood per
    token, minus that over low-pole statements, in nats per token. 0 is neutral only relative to
    these statements, so read it against the value of the unedited model. The interval is over the
    sampling of statements (Welch's formula). Two interventions read the same statements, so the
    error of their difference is smaller than these two together.

    Attributes:
        statements: Both poles of one or more traits, and none that a vector learned from.
        question: The user's message that every statement answers.
        system: A system message before it, if any.
        batch_size: Statements per forward pass; it changes speed and memory only.

    Raises:
        DataError: There are no statements, or a trait has statements of one pole only.
    """

    statements: Sequence[Statement]
    question: str = QUESTION
    system: str | None = None
    batch_size: int = field(default=32, compare=False)
    name: str = "likelihood"

    version: ClassVar[int] = 2
    unit: ClassVar[str] = "nats per token"

    def __post_init__(self) -> None:
        if not self.statements:
            raise DataError("a likelihood needs statements; give at least one of each pole")
        poles = {statement.pole for statement in self.statements}
        for pole in sorted(poles):
            if pole.opposite not in poles:
                raise DataError(
                    f"{self.name}: has statements of {pole} but none of {pole.opposite}"
                )

    @property
    def points_per_batch(self) -> int:
        """How many points fill a batch of statements."""
        return self.batch_size // len(self.statements)

    @property
    def traits(self) -> tuple[Trait, ...]:
        """The traits that are measured, in order of first appearance."""
        return tuple(dict.fromkeys(statement.trait for statement in self.statements))

    def collect(self, subject: Subject, seed: int) -> Findings:  # noqa: ARG002
        """Return the number of every trait, and what each statement adds to it.

        Raises:
            DataError: A statement is longer than the model reads.
            NonFiniteError: The model gives a statement a likelihood that is not a number.
        """
        by_pole: dict[Pole, list[float]] = {}
        for statement, value in zip(self.statements, self._likelihoods(subject), strict=True):
            by_pole.setdefault(statement.pole, []).append(value)
        readings = [
            _reading(self.name, trait, by_pole[Pole(trait, "high")], by_pole[Pole(trait, "low")])
            for trait in self.traits
        ]
        total = {reading.trait: reading.n for reading in readings}
        observations = [
            # Weighted so that their mean is mean(high) - mean(low).
            Observation(
                self.name,
                pole.trait,
                f"{pole} {index}",
                pole.sign * value * total[pole.trait] / len(values),
            )
            for pole, values in by_pole.items()
            for index, value in enumerate(values)
        ]
        return Findings(readings=readings, observations=observations)

    def _likelihoods(self, subject: Subject) -> list[float]:
        """Return the mean log-likelihood per token of each statement, in nats."""
        asked = question(self.question, system=self.system)
        # By length, so that a batch holds little padding.
        order = sorted(range(len(self.statements)), key=lambda i: len(self.statements[i].text))
        chats = [answered(asked, self.statements[index].text) for index in order]
        try:
            found = subject.log_likelihood(chats, self.batch_size).tolist()
        except LengthError as error:
            places = (each.place for each in self.statements if each.text == error.text)
            raise DataError(f"{next(places, '') or self.name}: {error}") from error
        likelihoods = dict(zip(order, found, strict=True))
        for index, value in likelihoods.items():
            if not math.isfinite(value):
                raise NonFiniteError(
                    f"the model gives {self.statements[index].text[:60]!r} a log-likelihood of "
                    f"{value}"
                )
        return [likelihoods[index] for index in range(len(self.statements))]


def _reading(name: str, trait: Trait, high: Sequence[float], low: Sequence[float]) -> Reading:
    value = statistics.fmean(high) - statistics.fmean(low)
    n = len(high) + len(low)
    if min(len(high), len(low)) < 2:
        return Reading(name, value, trait, n=n)
    error = math.sqrt(statistics.variance(high) / len(high) + statistics.variance(low) / len(low))
    return Reading(name, value, trait, value - Z95 * error, value + Z95 * error, n)
