"""A judge of originality without a model: how few others have the same idea."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import ClassVar

from pydantic import Field

from personality_vector.data.ideas import distinct_ideas
from personality_vector.data.rows import keys_of, raw_rows
from personality_vector.errors import DataError
from personality_vector.judges.spec import BaseJudge, JudgeSpec
from personality_vector.recipes.schema import LocalPath, Real, Words
from personality_vector.subject import Answer, Rubric, Score, digest_of, said

Idea = frozenset[str]
"""The content words of an idea."""


class InfrequencyJudge(JudgeSpec):
    """Rates originality by how rare the ideas of an answer are among answers to the same item.

    They are all other answers of the run, or those of ``pool``, a data file with a row ``{item,
    text}`` for each; ``item`` is the identifier, such as ``uses-01``. Two ideas are the same if
    their content words are, or if these overlap (Jaccard's index) by ``overlap`` at least.
    """

    pool: LocalPath | None = None
    overlap: Real = Field(default=0.5, gt=0.0, le=1.0)
    name: Words = "infrequency"

    def open(self) -> "Infrequency":
        """Read the pool, if there is one.

        Raises:
            DataError: It cannot be read, or a row is not an answer.
        """
        pool = None if self.pool is None else _pool(_read(self.pool))
        return Infrequency(self.overlap, pool, self.name, compares_all=self.pool is None)


@dataclass(frozen=True)
class Infrequency(BaseJudge):
    """``1 - share of other answers with the same idea``, a mean over the ideas of an answer.

    1 means that nobody else has any of its ideas. Others are the answers of a run to the same item,
    whichever model and seed gave them, without the answer itself (leave-one-out); or those of a
    pool, all of them. An answer without ideas is unscored, and so is one that nobody else gave.

    It reads words, so an idea in other words counts as another idea, and so does noise.

    Attributes:
        overlap: Jaccard's index from which two ideas are the same, in (0, 1].
        pool: Item to the ideas of each answer; ``None`` until it is known.
        name: Name in tables.
        compares_all: Whether the pool is made of the answers of a run, of which one is itself.

    Source:
        Statistical infrequency, Wallach and Kogan 1965, Modes of Thinking in Young Children. The
        pool of a run says what is rare among these models, not among people.
    """

    overlap: float = 0.5
    pool: Mapping[str, Sequence[frozenset[Idea]]] | None = field(default=None, compare=False)
    name: str = field(default="infrequency", compare=False)
    compares_all: bool = True

    scale: ClassVar[tuple[float, float]] = (0.0, 1.0)
    rates: ClassVar[tuple[str, ...]] = ("originality",)
    version: ClassVar[int] = 1

    @property
    def is_revised(self) -> bool:
        """Whether its scores change with the run, whose answers are its pool."""
        return self.compares_all

    def identity(self) -> str:
        """Return the digest of its options and of the pool."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        pool = {
            item: sorted(sorted(sorted(idea) for idea in ideas) for ideas in answers)
            for item, answers in (self.pool or {}).items()
        }
        return digest_of(type(self).__name__, self.version, self.overlap, self.compares_all, pool)

    def among(self, answers: Sequence[tuple[Answer, Sequence[str]]]) -> "Infrequency":
        """Return the judge with all answers of a run as its pool, unless it has a pool."""
        if not self.compares_all:
            return self
        kept = {_once(one): one for one, traits in answers if set(self.rates) & {*traits}}
        return replace(self, pool=_pool([(one.item, one.reply) for one in kept.values()]))

    def __call__(self, _rubric: Rubric, answers: Sequence[Answer], /) -> list[Score]:
        """Return one score for each answer, in order.

        Raises:
            DataError: The pool is not known yet.
        """
        return [self._score(answer) for answer in answers]

    def _score(self, answer: Answer) -> Score:
        if self.pool is None:
            raise DataError(f"{self.name}: show it the answers of a run, or give it a pool")
        own, others = _ideas(answer.reply), list(self.pool.get(answer.item, ()))
        if not own:
            return Score(None, "it holds no idea")
        if self.compares_all and own in others:
            others.remove(own)
        if not others:
            return Score(None, f"there is no other answer to {answer.item}")
        shares = [fmean(self._holds(other, idea) for other in others) for idea in own]
        return Score(1.0 - fmean(shares))

    def _holds(self, others: frozenset[Idea], idea: Idea) -> bool:
        """Return whether an answer holds an idea."""
        return idea in others or any(
            len(idea & other) >= self.overlap * len(idea | other) for other in others
        )


def _once(answer: Answer) -> tuple[object, ...]:
    """Return what two answers share that are one: at strength 0, all are those of the base."""
    place = answer.place
    if place is not None and place.strength == 0.0:
        place = place._replace(intervention="")
    return place, answer.item, answer.sample, answer.reply


def _ideas(reply: str) -> frozenset[Idea]:
    return frozenset(distinct_ideas(said(reply).answer))


def _pool(answers: Sequence[tuple[str, str]]) -> dict[str, list[frozenset[Idea]]]:
    """Return the ideas of each answer by its item; answers without ideas are left out."""
    found: dict[str, list[frozenset[Idea]]] = {}
    for item, text in answers:
        if ideas := _ideas(text):
            found.setdefault(item, []).append(ideas)
    return found


def _read(file: Path) -> list[tuple[str, str]]:
    rows = raw_rows(file)
    for place, row in rows.items():
        if not all(isinstance(row.get(key), str) for key in ("item", "text")):
            raise DataError(f"{place}: an answer of a pool has item and text; {keys_of(row)}")
    if not rows:
        raise DataError(f"{file}: has no answers; a row is {{item, text}}")
    return [(row["item"], row["text"]) for row in rows.values()]
