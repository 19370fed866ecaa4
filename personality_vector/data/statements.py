"""First-person statements of the two poles of a trait, and their split into two parts.

A statement belongs to ``train`` or to ``held_out``: vectors and judges learn from the first,
likelihoods and accuracies are measured on the second.
"""

import hashlib
import logging
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, StringConstraints

from personality_vector.data.rows import HubData, fitted, is_blank, raw_rows
from personality_vector.errors import DataError, some
from personality_vector.recipes.schema import Name, Recipe
from personality_vector.traits import Level, Pole, Trait

log = logging.getLogger(__name__)

Part = Literal["train", "held_out"]
"""Who may read a statement: what learns from it, or what measures with it."""


@dataclass(frozen=True, slots=True)
class Statement:
    """What a person at one end of a trait would say: ``I enjoy meeting new people``.

    Attributes:
        trait: What it is about.
        level: Which end of it.
        text: The statement.
        part: Who may read it, if it was read from a file.
        place: File and line.
    """

    trait: Trait
    level: Level
    text: str
    part: Part | None = field(default=None, compare=False)
    place: str = field(default="", compare=False)

    @property
    def pole(self) -> Pole:
        """The end of the trait that the statement expresses."""
        return Pole(self.trait, self.level)


class _Row(Recipe):
    trait: Name
    level: Level
    statement: Annotated[
        str,
        BeforeValidator(lambda value: "" if value is None else value),
        StringConstraints(strip_whitespace=True),
    ]
    part: Annotated[Part | None, BeforeValidator(lambda value: value or None)] = None


def read_statements(
    path: Path | HubData,
    *,
    trait: Trait | None = None,
    level: Level | None = None,
    part: Part | None = None,
    held_out: float = 0.2,
) -> list[Statement]:
    """Return the statements of a data file, or of every ``*.jsonl`` in a directory, in file order.

    Rows without a statement are dropped, which is said once.

    Args:
        path: Anything that :func:`read_rows` reads, or a directory; a row is
            ``{"trait", "level", "statement"}`` and optionally ``"part"``.
        trait: Only this trait; all if ``None``.
        level: Only this end; both if ``None``.
        part: Only this part; both if ``None``.
        held_out: Share in [0, 1] of the rows without a ``part`` that is held out, chosen by
            :func:`part_of`: independent of order, files and other rows.

    Raises:
        DataError: The path is missing, a line cannot be read as a row (file and line are named), a
            statement is in both parts, or the selection is empty.
    """
    chosen, empty = select_statements(path, trait=trait, level=level, part=part, held_out=held_out)
    if empty:
        _say_dropped(path, empty)
    return chosen


def select_statements(
    path: Path | HubData,
    *,
    trait: Trait | None = None,
    level: Level | None = None,
    part: Part | None = None,
    held_out: float = 0.2,
) -> tuple[list[Statement], int]:
    """Return what :func:`read_statements` does, and the number of rows without a statement."""
    rows = [each for file in _files(path) for each in raw_rows(file).items()]
    read = [(place, fitted(place, row, _Row)) for place, row in rows if not is_blank(row)]
    found = [
        Statement(
            row.trait,
            row.level,
            row.statement,
            row.part or (part_of(row.statement, held_out) if row.statement else None),
            place,
        )
        for place, row in read
    ]
    asked = [
        each
        for each in found
        if trait in (None, each.trait)
        and level in (None, each.level)
        and (part is None or each.part in (part, None))
    ]
    _require_disjoint_parts([each for each in found if each.text])
    chosen = [each for each in asked if each.text]
    empty = len(rows) - len(found) + len(asked) - len(chosen)
    if not chosen:
        wanted = " ".join(word for word in (part, trait, level) if word)
        counts = Counter((str(each.pole), each.part) for each in found if each.text)
        listed = [f"{pole} {part} {count}" for (pole, part), count in sorted(counts.items())]
        there = ", ".join(listed) or ("no other rows" if empty else "no rows at all")
        dropped = f"; dropped rows: {empty} empty" if empty else ""
        raise DataError(f"{path}: no {wanted or 'statements'} there{dropped}; it has {there}")
    return chosen, empty


@cache
def _say_dropped(path: Path | HubData, empty: int) -> None:
    log.warning("%s: dropped rows: %d empty", path, empty)


def of_both_poles(
    statements: Sequence[Statement], traits: Sequence[Trait], lacking: str
) -> dict[Pole, list[Statement]]:
    """Return the statements of each pole of ``traits``, the high pole of a trait first.

    Raises:
        DataError: A pole has no statements; the message begins with ``lacking``.
    """
    levels: tuple[Level, ...] = ("high", "low")
    found: dict[Pole, list[Statement]] = {Pole(t, level): [] for t in traits for level in levels}
    for statement in statements:
        if statement.pole in found:
            found[statement.pole].append(statement)
    empty = [str(pole) for pole, rows in found.items() if not rows]
    if empty:
        raise DataError(f"{lacking} of {some(empty)}")
    return found


def part_of(text: str, held_out: float = 0.2) -> Part:
    """Return the part of ``text``: held out iff its hash falls into the first ``held_out``.

    Texts that differ only in case or white space are in the same part.
    """
    digest = hashlib.blake2b(normalised(text).encode(), digest_size=8).digest()
    return "held_out" if int.from_bytes(digest, "big") < held_out * 2**64 else "train"


def normalised(text: str) -> str:
    """Return ``text`` without differences of case, white space and Unicode form.

    >>> normalised(" I  like TEA")
    'i like tea'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _files(path: Path | HubData) -> list[Path] | list[HubData]:
    if isinstance(path, HubData):
        return [path]
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"{path}: this file or directory of statements does not exist")
    files = sorted(path.glob("*.jsonl"))
    if not files:
        raise DataError(f"{path}: this directory has no .jsonl file of statements")
    return files


def _require_disjoint_parts(found: Sequence[Statement]) -> None:
    """Refuse a statement in both parts, which only rows that name their part can cause."""
    first: dict[str, Statement] = {}
    for each in found:
        other = first.setdefault(normalised(each.text), each)
        if other.part != each.part:
            raise DataError(
                f"{each.place}: this statement is {each.part}, but {other.part} at {other.place}; "
                "a statement that is learned from cannot be measured on"
            )
