"""People as judges: their ratings of stored answers, from a table such as ``answers.csv``."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, NamedTuple

from pydantic import model_validator

from personality_vector.data.rows import is_blank, keys_of, raw_rows
from personality_vector.errors import DataError, some
from personality_vector.judges.spec import BaseJudge, JudgeSpec
from personality_vector.recipes.schema import LocalPath, Real, Words
from personality_vector.subject import Answer, Rubric, Score, identity_of, said

_RATING, _SCORE = "rating", "score"
_NUMBERS = ("strength", "seed", "sample")
# From the whole to the part, so that a message names the first thing that is not known.
_COLUMNS = ("measure", "intervention", "strength", "seed", "item", "sample", "reply", "trait")


class HumansJudge(JudgeSpec):
    """The people who filled in ``ratings``, a table with a row for each rating, on ``scale``.

    ``pvec judge RUN`` reads the ``answers.csv`` of the same run with a number in ``score`` beside
    each answer, or in a column ``rating`` of your own. Columns: ``item, sample, trait, score``;
    where this leaves several answers, ``measure, intervention, strength, seed`` or ``reply`` (the
    text, or its SHA-256) too. The ratings of several people, each with a name in ``rater``, are
    averaged.
    """

    ratings: LocalPath
    scale: tuple[Real, Real] = (1.0, 5.0)
    name: Words = "humans"

    @model_validator(mode="after")
    def _has_two_ends(self) -> "HumansJudge":
        if self.scale[0] >= self.scale[1]:
            raise ValueError("scale: give its lower end first, such as [1, 5]")
        return self

    def open(self) -> "Ratings":
        """Read the ratings.

        Raises:
            DataError: The file cannot be read, or a row is not a rating on the scale.
        """
        rows = {place: row for place, row in raw_rows(self.ratings).items() if not is_blank(row)}
        found = [_rating(place, row, self) for place, row in rows.items()]
        given = tuple(rating for rating in found if rating is not None)
        if not given:
            raise DataError(
                f"{self.ratings}: holds no rating; write a number from {self.scale[0]:g} to "
                f"{self.scale[1]:g} into the column {_SCORE}"
            )
        return Ratings(self.ratings, self.scale, given, self.name)


class Rating(NamedTuple):
    """One number that a person gave, and what it was given for.

    Attributes:
        place: The row, for messages.
        score: The number.
        rater: Who gave it.
        of: Columns that say which answer was rated, to their values.
    """

    place: str
    score: float
    rater: str
    of: Mapping[str, Any]

    def is_for(self, column: str, answer: Answer, traits: Sequence[str]) -> bool:
        """Return whether a column allows an answer that is rated for ``traits``."""
        value, known = self.of.get(column), _value_of(answer, column)
        # At strength 0, everything is the base.
        is_base = self.of.get("strength") == _value_of(answer, "strength") == 0.0
        if value is None or (is_base and column == "intervention"):
            return True
        if column == "trait":
            return value in traits
        if column == "reply":
            text = said(answer.reply).answer
            return value in (known, hashlib.sha256(text.encode()).hexdigest())
        return value == known or (column == "strength" and math.isclose(value, known or 0.0))


@dataclass(frozen=True)
class Ratings(BaseJudge):
    """The ratings that people gave; an answer without one is unscored.

    Attributes:
        file: Where they stand.
        scale: The ends of their scale.
        given: The ratings.
        name: Name in tables.
    """

    file: Path
    scale: tuple[float, float]
    given: Sequence[Rating] = field(compare=False)
    name: str = field(default="humans", compare=False)

    version: ClassVar[int] = 1
    is_revised: ClassVar[bool] = True

    def identity(self) -> str:
        """Return the digest of the file and of the scale."""
        return self._identity

    @cached_property
    def _identity(self) -> str:
        return identity_of(self)

    @cached_property
    def _by_item(self) -> dict[Any, list[Rating]]:
        found: dict[Any, list[Rating]] = {}
        for rating in self.given:
            found.setdefault(rating.of.get("item"), []).append(rating)
        return found

    def __call__(self, rubric: Rubric, answers: Sequence[Answer], /) -> list[Score]:
        """Return the mean rating of each answer, in order."""
        return [self._score(rubric, answer) for answer in answers]

    def _score(self, rubric: Rubric, answer: Answer) -> Score:
        by_rater: dict[str, list[float]] = {}
        for rating in self._by_item.get(answer.item, []) + self._by_item.get(None, []):
            if all(rating.is_for(column, answer, [rubric.trait]) for column in _COLUMNS):
                by_rater.setdefault(rating.rater, []).append(rating.score)
        if not by_rater:
            return Score(None, "no human rated it")
        return Score(fmean(map(fmean, by_rater.values())))

    def among(self, answers: Sequence[tuple[Answer, Sequence[str]]]) -> "Ratings":
        """Return this judge, after checking that every rating is that of one answer.

        Args:
            answers: All answers of a run, each with the traits that it is rated for.

        Raises:
            DataError: The answer of a rating is not known, or it could be several.
        """
        by_item: dict[Any, list[tuple[Answer, Sequence[str]]]] = {}
        for answer, traits in answers:
            by_item.setdefault(answer.item, []).append((answer, traits))
        for rating in self.given:
            _require_known(rating, by_item.get(rating.of.get("item")) or answers)
        return self


def _require_known(rating: Rating, answers: Sequence[tuple[Answer, Sequence[str]]]) -> None:
    left = list(answers)
    for column in _COLUMNS:
        fitting = [(a, traits) for a, traits in left if rating.is_for(column, a, traits)]
        if not fitting:
            raise DataError(_unknown(rating, column, left))
        left = fitting
    if "trait" not in rating.of and len(traits := {t for _, found in left for t in found}) > 1:
        raise DataError(f"{rating.place}: the trait is missing; write one of {some(traits, 9)}")
    texts = {(a.item, _plain(a.reply)) for a, _ in left}
    if len(texts) > 1:
        lacking = [c for c in _COLUMNS[1:-1] if len({_value_of(a, c) for a, _ in left}) > 1]
        raise DataError(
            f"{rating.place}: could be the rating of {len(left)} answers; add "
            f"{' or '.join(c for c in lacking if c not in rating.of)}"
        )


def _unknown(rating: Rating, column: str, left: Sequence[tuple[Answer, Sequence[str]]]) -> str:
    """Return what to say of a rating whose ``column`` fits no answer, but all before it did."""
    value = rating.of[column]
    if column == "reply":
        return (
            f"{rating.place}: the reply {value[:40]!r} is not that of this answer, which is "
            f"{_value_of(left[0][0], column)[:40]!r}; rate the answers of this run"
        )
    known = (
        {trait for _, traits in left for trait in traits}
        if column == "trait"
        else {_shown(_value_of(answer, column)) for answer, _ in left}
    )
    shown = f"{column} {_shown(value)}"
    return f"{rating.place}: there is no answer with {shown}; known are {some(known, 9)}"


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _value_of(answer: Answer, column: str) -> Any:
    """Return what an answer has in a column."""
    if column == "reply":
        return _plain(answer.reply)
    if column in ("item", "sample"):
        return getattr(answer, column)
    return getattr(answer.place, column, None)


def _plain(text: str) -> str:
    """Return a reply without thoughts and without what a spreadsheet may change in it."""
    return " ".join(said(text).answer.split())


def _rating(place: str, row: Mapping[str, Any], spec: HumansJudge) -> Rating | None:
    """Return the rating in a row, or ``None`` if there is no number.

    Raises:
        DataError: It is not a rating.
    """
    cells = {key: str(value).strip() for key, value in row.items() if value is not None}
    column = _RATING if _RATING in cells else _SCORE
    if column not in cells:
        raise DataError(f"{place}: has no column {_SCORE} for the rating; {keys_of(dict(row))}")
    if not cells[column]:
        return None
    if column == _SCORE and cells.get("judge", "") not in ("", spec.name):
        raise DataError(
            f"{place}: this is the score of {cells['judge']}; write those of people into a column "
            f"{_RATING} of their own"
        )
    score = _number(place, column, cells[column])
    low, high = spec.scale
    if not low <= score <= high:
        raise DataError(
            f"{place}: {column} {score:g} lies outside of the scale from {low:g} to {high:g}; "
            "correct it, or give the judge another scale, such as [0, 100]"
        )
    of: dict[str, Any] = {name: _text(cells[name]) for name in _COLUMNS if cells.get(name)}
    of |= {name: _number(place, name, of[name]) for name in _NUMBERS if name in of}
    if "reply" in of:
        of["reply"] = _plain(of["reply"])
    return Rating(place, score, cells.get("rater") or place, of)


def _number(place: str, column: str, text: str) -> float:
    try:
        found = float(text.replace(",", "."))
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise DataError(f"{place}: {column} should be a number, not {text[:40]!r}")
    return found


def _text(cell: str) -> str:
    """Return a cell without the quote that ``answers.csv`` puts before a formula."""
    return cell[1:] if cell[:2] in {"'=", "'+", "'-", "'@"} else cell
