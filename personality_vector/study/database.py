"""The SQLite file of a run: its tables, durable connections and errors of this package."""

import json
import sqlite3
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from personality_vector.errors import (
    CheckpointError,
    DataError,
    LockedError,
    PersonalityVectorError,
    StorageError,
)
from personality_vector.subject import Cell

_SECONDS_TO_WAIT = 30.0
_LOCKED = (LockedError, "another process is writing there; wait for it or stop it")
_STORAGE = (StorageError, "cannot be read or written: {error}")
_MEANINGS: dict[int, tuple[type[PersonalityVectorError], str]] = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_FULL: _STORAGE,
    sqlite3.SQLITE_IOERR: _STORAGE,
    sqlite3.SQLITE_READONLY: _STORAGE,
    sqlite3.SQLITE_CANTOPEN: _STORAGE,
    sqlite3.SQLITE_PERM: _STORAGE,
    sqlite3.SQLITE_CONSTRAINT: (DataError, "two rows of a cell have the same key: {error}"),
}
_DAMAGED = (CheckpointError, "is not a results file, or is damaged: {error}")

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
MEASURED = ("cells", "answers", "scores", "readings")
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


class Database:
    """An open SQLite file; made by :func:`connected`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self.connection = connection

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows that a query finds."""
        with explained(self.path):
            return self.connection.execute(query, values).fetchall()

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Commit what the block writes, or nothing of it."""
        with explained(self.path):
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise


@contextmanager
def connected(path: Path) -> Generator[sqlite3.Connection]:
    """Open ``path`` with write-ahead logging and synchronous FULL; transactions are explicit.

    At the end, the log is folded into the file.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=_SECONDS_TO_WAIT, isolation_level=None)
    with closing(connection):
        with explained(path):
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            connection.create_function(DIGEST, -1, mixed, deterministic=True)
        yield connection


@contextmanager
def explained(path: Path) -> Generator[None]:
    """Turn errors of SQLite and of the disk into ours."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        kind, meaning = _MEANINGS.get(code, _DAMAGED)
        raise kind(f"{path}: {meaning.format(error=error)}") from error
    except UnicodeDecodeError as error:  # what SQLite says may quote the damaged text of a table
        kind, meaning = _DAMAGED
        raise kind(f"{path}: {meaning.format(error=error)}") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
