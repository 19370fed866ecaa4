"""The tables of a results file and the rows that go into them."""

import math
from dataclasses import dataclass, fields
from typing import Literal

from personality_vector.errors import NonFiniteError
from personality_vector.traits import Trait

Table = Literal["run", "cells", "answers", "measures"]

COLUMNS: dict[Table, dict[str, str]] = {
    "run": {"key": "TEXT NOT NULL", "value": "TEXT NOT NULL"},
    "cells": {
        "intervention": "TEXT NOT NULL",
        "strength": "REAL NOT NULL",
        "seconds": "REAL NOT NULL",
        "finished_at": "TEXT NOT NULL",
    },
    "answers": {
        "intervention": "TEXT NOT NULL",
        "strength": "REAL NOT NULL",
        "item": "TEXT NOT NULL",
        "trait": "TEXT NOT NULL",
        "sample": "INTEGER NOT NULL",
        "question": "TEXT NOT NULL",
        "reply": "TEXT NOT NULL",
        "score": "REAL",
        "reason": "TEXT NOT NULL",
    },
    "measures": {
        "intervention": "TEXT NOT NULL",
        "strength": "REAL NOT NULL",
        "trait": "TEXT NOT NULL",
        "measure": "TEXT NOT NULL",
        "value": "REAL",
        "standard_error": "REAL",
        "n": "INTEGER NOT NULL",
        "unscored": "INTEGER NOT NULL",
    },
}
"""Table -> column -> SQLite type."""

_KEY_LENGTH: dict[Table, int] = {"run": 1, "cells": 2, "answers": 5, "measures": 4}


@dataclass(frozen=True, slots=True)
class Answer:
    """One reply and its score for one trait; ``score`` is ``None`` if unscored, for ``reason``."""

    item: str
    trait: Trait
    sample: int
    question: str
    reply: str
    score: float | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Measure:
    """One number about a cell.

    Attributes:
        trait: What is measured, or ``""`` for a measure of no trait, such as perplexity.
        measure: Its name, such as ``probe`` or ``kl_to_base``.
        value: ``None`` if nothing could be measured.
        standard_error: Of ``value``, if known.
        n: Observations behind ``value``.
        unscored: Observations that gave no value.
    """

    trait: Trait
    measure: str
    value: float | None
    standard_error: float | None = None
    n: int = 0
    unscored: int = 0


def key_of(table: Table) -> str:
    """Return the columns that identify a row, as SQL."""
    return ", ".join(list(COLUMNS[table])[: _KEY_LENGTH[table]])


def definition(table: Table) -> str:
    """Return the statement that makes the table."""
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS[table].items())
    return f"CREATE TABLE {table} ({columns}, PRIMARY KEY ({key_of(table)}))"


def insertion(table: Table) -> str:
    """Return the statement that adds a row."""
    return f"INSERT INTO {table} VALUES ({', '.join('?' * len(COLUMNS[table]))})"


def values_of(row: Answer | Measure, where: str) -> list[str | int | float | None]:
    """Return the fields of a row for SQLite, which would store a NaN as NULL.

    Raises:
        NonFiniteError: A number is NaN or infinite.
    """
    values: list[str | int | float | None] = []
    for field in fields(row):
        value = getattr(row, field.name)
        is_plain = value is None or isinstance(value, str | int)
        values.append(value if is_plain else finite(value, f"{where}, {row.trait} {field.name}"))
    return values


def finite(value: float, where: str) -> float:
    """Return ``value`` as a Python float.

    Raises:
        NonFiniteError: It is NaN or infinite.
    """
    number = float(value)
    if not math.isfinite(number):
        raise NonFiniteError(f"{where} is {number}; only finite numbers are results")
    return number
