"""A judge without training: an unedited model that reads an answer, and what could follow it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import sqrt, tanh
from statistics import fmean
from typing import Any, ClassVar, NamedTuple

from pydantic import Field

from personality_vector.data.statements import Statement, of_both_poles, read_statements
from personality_vector.data.texts import read_texts, words
from personality_vector.errors import DataError, LengthError, some
from personality_vector.judges.spec import BaseJudge, JudgeSpec
from personality_vector.lab import NEUTRAL_TEXTS, PERSONALITY_TEXTS, builtin
from personality_vector.progress import progress
from personality_vector.recipes.schema import LocalPath, Real, Whole, Words
from personality_vector.subject import (
    Answer,
    Rubric,
    Score,
    Subject,
    identity_of,
    question,
)
from personality_vector.traits import Trait

LOWEST, HIGHEST = 1.0, 5.0
"""Ends of the scale; 3 is the middle."""

ASKED = "Tell me about yourself."
"""The question that a text without one answers."""
_LONGEST = 16  # words of a statement
_FAR = 10.0
"""A preference of so many standard deviations of neutral texts is three quarters of the way."""


class ReaderJudge(JudgeSpec):
    """The unedited base as a reader: which pole's ``statements`` it expects the speaker to add.

    ``per_pole`` statements of each pole are read after each answer. An answer whose preference lies
    within ``band`` standard deviations of what is usual is unscored. What is usual is measured on
    people who speak of their other traits, and on ``neutral`` texts, at most ``limit`` of each.
    """

    statements: LocalPath = builtin(PERSONALITY_TEXTS)
    per_pole: Whole = Field(default=12, ge=2)
    neutral: LocalPath = builtin(NEUTRAL_TEXTS)
    limit: Whole = Field(default=60, ge=10)
    band: Real = Field(default=2.0, ge=0.0)
    name: Words = "reader"

    def open(self) -> "Reader":
        """Return the judge, which reads the neutral texts when it rates for the first time.

        Raises:
            DataError: A file cannot be read, a pole is missing, or there are too few neutral texts.
        """
        found = [
            one
            for one in read_statements(self.statements, part="train")
            if len(words(one.text)) <= _LONGEST
        ]
        traits = sorted({statement.trait for statement in found})
        poles = of_both_poles(found, traits, f"{self.statements}: no statements")
        texts = read_texts(self.neutral, "train")
        if len(texts) < self.limit:
            raise DataError(f"{self.neutral}: has {len(texts)} texts; the band needs {self.limit}")
        return Reader(
            tuple(one for rows in poles.values() for one in _spread(rows, self.per_pole)),
            tuple(_spread(texts, self.limit)),
            self.band,
            self.name,
        )


class Band(NamedTuple):
    """The preference of texts that do not show a trait, in nats per token.

    Attributes:
        centre: The mean over people who speak of their other traits, as many high as low.
        deviation: The root mean square, over these and the neutral texts, of the distance to it.
    """

    centre: float
    deviation: float


@dataclass(frozen=True)
class Reader(BaseJudge):
    """Which statements an unedited model expects to follow an answer in the same reply.

    ``d = mean log p(s | answer) over high-pole statements s - the same over low-pole ones``, in
    nats per token. ``z = (d - m) / sd``: ``m`` is the mean of ``d`` over statements of the other
    traits, since any self-description moves ``d``, and ``sd`` the root mean square of the distance
    to it over these and texts without personality. The score is ``3 + 2 tanh(z / 10)``, or its
    mirror for a low pole; where ``|z|`` is at most ``band``, the answer is unscored. Nothing is
    learned. The reader is as good as the model.

    Attributes:
        statements: Of both poles of each trait, the same number of each.
        neutral: Texts without personality.
        band: Half the width of the neutral band, in standard deviations.
        name: Name in tables.
        subject: The unedited model, once there is one.
    """

    statements: Sequence[Statement]
    neutral: Sequence[str]
    band: float = 2.0
    name: str = field(default="reader", compare=False)
    subject: Subject | None = field(default=None, compare=False)

    scale: ClassVar[tuple[float, float]] = (LOWEST, HIGHEST)
    version: ClassVar[int] = 2
    """Raised when the same texts give other scores."""

    @cached_property
    def traits(self) -> tuple[Trait, ...]:
        """The traits that it has statements of."""
        return tuple(dict.fromkeys(statement.trait for statement in self.statements))

    def identity(self) -> str:
        """Return the digest of the texts and the band; the model is that of the run."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        return identity_of(self)

    def prepare(self, base: Subject, /) -> "Reader":
        """Return it with the model that reads."""
        return replace(self, subject=base)

    def __call__(self, rubric: Rubric, answers: Sequence[Answer], /) -> list[Score]:
        """Return one score for each answer, in order.

        Raises:
            DataError: The rubric has no pole, its trait has no statements, or no model is there.
        """
        if rubric.pole is None or rubric.pole.trait not in self.traits:
            raise DataError(
                f"{self.name}: has statements of {some(self.traits)}, and none of {rubric.trait}; "
                "choose another judge"
            )
        if not answers:
            return []
        trait, sign = rubric.pole.trait, rubric.pole.sign
        return [self._score(answer, trait, sign) for answer in progress(answers, "judge")]

    def preference(self, asked: str, reply: str, trait: Trait) -> float:
        """Return ``d``: how much likelier high-pole statements are next, in nats per token.

        Raises:
            DataError: No model is there.
            LengthError: The model does not read so much.
        """
        key = (asked, reply, trait)
        if key not in self._read:
            self._read[key] = self._preference(*key)
        return self._read[key]

    @cached_property
    def _read(self) -> dict[tuple[str, str, Trait], float]:
        """What was read already: a reply is rated for two poles, and seeds repeat it."""
        return {}

    def _score(self, answer: Answer, trait: Trait, sign: int) -> Score:
        if not answer.reply.strip():
            return Score(None, "the answer is empty")
        usual = self.band_of(trait)
        try:
            d = self.preference(answer.question, answer.reply, trait)
        except LengthError:
            return Score(None, "the answer is longer than the model reads")
        z = (d - usual.centre) / usual.deviation
        if abs(z) <= self.band:
            return Score(None, f"shows too little of the trait (z = {z:.2f})")
        return Score(3.0 + 2.0 * sign * tanh(z / _FAR), f"z = {z:.2f}")

    def band_of(self, trait: Trait) -> Band:
        """Return the band of a trait; computing it takes minutes on two cores for a 135M model."""
        if trait not in self._bands:
            others = [
                [s.text for s in self.statements if s.trait != trait and s.level == level]
                for level in ("high", "low")
            ]
            people = [text for texts in others for text in _spread(texts, len(self.neutral) // 2)]
            texts = progress([*people, *self.neutral], f"usual texts, {trait}")
            found = [self.preference("", text, trait) for text in texts]
            centre = fmean(found[: len(people)] or found)
            spread = sqrt(fmean((one - centre) ** 2 for one in found))
            self._bands[trait] = Band(centre, max(spread, 1e-6))
        return self._bands[trait]

    @cached_property
    def _bands(self) -> dict[Trait, Band]:
        return {}

    def _preference(self, asked: str, reply: str, trait: Trait) -> float:
        from personality_vector.subject.continuations import continuation_likelihoods

        if self.subject is None:
            raise DataError(f"{self.name}: needs a model that reads; name one with --model")
        own = [statement for statement in self.statements if statement.trait == trait]
        found = continuation_likelihoods(
            self.subject.model,
            self.subject.tokenizer,
            question(asked or ASKED),
            reply.strip(),
            [statement.text for statement in own],
        ).tolist()
        high, low = (
            fmean(value for value, one in zip(found, own, strict=True) if one.level == level)
            for level in ("high", "low")
        )
        return high - low


def _spread(rows: Sequence[Any], count: int) -> Iterable[Any]:
    """Return ``count`` rows, evenly spread, or all of them if there are fewer."""
    step = max(1.0, len(rows) / count)
    return [rows[int(index * step)] for index in range(min(count, len(rows)))]
