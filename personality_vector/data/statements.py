"""First-person statements of the two poles of a trait, and their split into two parts.

A statement belongs to ``train`` or to ``held_out``: vectors and judges learn from the first,
likelihoods and accuracies are measured on the second.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import StringConstraints

from personality_vector.data.rows import HubData, read_rows
from personality_vector.errors import DataError, some
from personality_vector.recipes.schema import Name, Recipe
from personality_vector.traits import Level, Pole, Trait

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
    statement: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
    part: Part | None = None


def read_statements(
    path: Path | HubData,
    *,
    trait: Trait | None = None,
    level: Level | None = None,
    part: Part | None = None,
    held_out: float = 0.2,
) -> list[Statement]:
    """Return the statements of a data file, or of every ``*.jsonl`` in a directory, in file order.

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
    found = [
        Statement(
            row.trait,
            row.level,
            row.statement,
            row.part or part_of(row.statement, held_out),
            place,
        )
        for file in _files(path)
        for place, row in read_rows(file, _Row).items()
    ]
    _require_disjoint_parts(found)
    chosen = [
        each
        for each in found
        if trait in (None, each.trait) and level in (None, each.level) and part in (None, each.part)
    ]
    if not chosen:
        asked = " ".join(word for word in (part, trait, level) if word)
        counts = Counter((str(each.pole), each.part) for each in found)
        listed = [f"{pole} {part} {count}" for (pole, part), count in sorted(counts.items())]
        there = ", ".join(listed) or "no rows at all"
        raise DataError(f"{path}: no {asked or 'statements'} there; it has {there}")
    return chosen


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
