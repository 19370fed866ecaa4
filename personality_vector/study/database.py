"""The SQLite file of a run: its tables, and the digest that guards them."""

import json
import sqlite3
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from personality_vector.files import sqlite
from personality_vector.subject import Cell

FORMAT = 2
"""The version of these tables."""

TABLES: dict[str, str] = {
    # What the folder holds: its format, the latest recipe, and what else a report needs.
    "run": "key TEXT PRIMARY KEY, value TEXT NOT NULL",
    # One measure of one intervention at one strength with one seed, finished.
    "cells": (
        "id INTEGER PRIMARY KEY, base TEXT NOT NULL, intervention TEXT NOT NULL, "
        "strength REAL NOT NULL, measure TEXT NOT NULL, seed INTEGER NOT NULL, "
        "seconds REAL NOT NULL, finished_at TEXT NOT NULL, "
        "UNIQUE (base, intervention, strength, measure, seed)"
    ),
    # Who works on what, and until when.
    "claims": (
        "key TEXT PRIMARY KEY, worker TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL, "
        "expires REAL NOT NULL"
    ),
    "answers": (
        "id INTEGER PRIMARY KEY, cell INTEGER NOT NULL REFERENCES cells, item TEXT NOT NULL, "
        "sample INTEGER NOT NULL, question TEXT NOT NULL, reply TEXT NOT NULL, "
        "traits TEXT NOT NULL, tokens_in INTEGER NOT NULL, tokens_out INTEGER NOT NULL, "
        "seconds REAL NOT NULL, UNIQUE (cell, item, sample)"
    ),
    # ``judge`` is a digest of the judge and of the rubric, so that neither can change unseen.
    "scores": (
        "answer INTEGER NOT NULL REFERENCES answers, judge TEXT NOT NULL, trait TEXT NOT NULL, "
        "value REAL, reason TEXT NOT NULL, PRIMARY KEY (answer, judge)"
    ),
    "readings": (
        "cell INTEGER NOT NULL REFERENCES cells, measure TEXT NOT NULL, trait TEXT NOT NULL, "
        "value REAL, low REAL, high REAL, n INTEGER NOT NULL, unscored INTEGER NOT NULL, "
        "unit TEXT NOT NULL, PRIMARY KEY (cell, measure, trait)"
    ),
    "observations": (
        "cell INTEGER NOT NULL REFERENCES cells, measure TEXT NOT NULL, trait TEXT NOT NULL, "
        "item TEXT NOT NULL, value REAL NOT NULL, PRIMARY KEY (cell, measure, trait, item)"
    ),
    # The cells of the latest recipe, under the names that it gives them.
    "planned": (
        "position INTEGER PRIMARY KEY, label TEXT NOT NULL, name TEXT NOT NULL, "
        "base TEXT NOT NULL, intervention TEXT NOT NULL, strength REAL NOT NULL, "
        "measure TEXT NOT NULL, seed INTEGER NOT NULL, nominal REAL NOT NULL, "
        "UNIQUE (label, nominal, seed, name)"
    ),
    # Who rates the answers of which measure of the latest recipe, and for what.
    "judged": (
        "name TEXT NOT NULL, called TEXT NOT NULL, trait TEXT NOT NULL, judge TEXT NOT NULL, "
        "PRIMARY KEY (name, called, trait)"
    ),
}
"""Table to its columns.

``planned`` and ``judged`` hold what the latest recipe asks for; the other tables only grow.
"""

DIGEST = "digest"
"""Key of the note that every row of a result is mixed into as it is inserted."""
MEASURED = ("cells", "answers", "scores", "readings", "observations")
"""The tables whose rows are measurements, which nobody changes afterwards."""


def mixed(digest: str, *row: Any) -> str:
    """Return a digest after a row is added: that of a set of rows, in any order.

    Source:
        AdHash: Bellare and Micciancio 1997, "A New Paradigm for Collision-Free Hashing". It guards
        against damage and honest edits, since anybody can compute it.
    """
    text = json.dumps(row, ensure_ascii=False).encode(errors="surrogatepass")
    return f"{(int(digest, 16) + xxhash.xxh3_128_intdigest(text)) % (1 << 128):032x}"


def trigger_of(table: str, columns: Iterable[str]) -> str:
    """Return the statement by which SQLite mixes each row that is inserted into the digest."""
    row = ", ".join(f"NEW.{column}" for column in columns)
    return (
        f"CREATE TRIGGER {DIGEST}_{table} AFTER INSERT ON {table} BEGIN UPDATE run "
        f"SET value = {DIGEST}(value, '{table}', {row}) WHERE key = '{DIGEST}'; END"
    )


class Planned(NamedTuple):
    """A cell under the names that the recipe gives it.

    Attributes:
        label: Label of the intervention.
        strength: The strength in the recipe; in the cell it is 0 if the point is the base.
        name: Name of the measure.
        cell: Its key.
    """

    label: str
    strength: float
    name: str
    cell: Cell


class Judged(NamedTuple):
    """A judge of a measure: its name, what it rates, and the digest of both."""

    name: str
    called: str
    trait: str
    judge: str


@contextmanager
def connected(path: Path) -> Generator[sqlite3.Connection]:
    """Open ``path`` as :func:`sqlite.connected` does, with the digest of results at hand."""
    with sqlite.connected(path) as connection:
        connection.create_function(DIGEST, -1, mixed, deterministic=True)
        yield connection
