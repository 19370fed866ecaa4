"""The results of a run, cell by cell, keyed by everything that a number depends on.

A *cell* is one measure of one intervention at one strength with one seed, on one base. It is
written whole or not at all, and never twice: what a changed recipe still asks for is found, and
only what is missing is measured.
"""

import json
import logging
import sqlite3
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from personality_vector.errors import CheckpointError, NonFiniteError, RecipeError
from personality_vector.study.store.claims import LEASE, Claims
from personality_vector.study.store.schema import FORMAT, PLAN, TABLES
from personality_vector.study.store.sqlite import connect, explained, transaction
from personality_vector.subject.protocols import Answer, Cell, Findings, Rubric, Score

log = logging.getLogger(__name__)

FILE = "results.sqlite"

_IS_CELL = "base = ? AND intervention = ? AND strength = ? AND measure = ? AND seed = ?"


class Planned(NamedTuple):
    """A cell under the names that the recipe gives it.

    Attributes:
        label: Of the intervention.
        strength: As the recipe has it; in the cell it is 0 for what is the base.
        name: Of the measure.
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


class Store:
    """A run's ``results.sqlite``, open for reading and writing; close it or use ``with``.

    Write-ahead logging with synchronous FULL: what has been written survives a kill and a power
    failure. Any number of processes of one machine may work on it.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lease: float = LEASE) -> None:
        self.path = path
        self.connection = connection
        self.claims = Claims(path, connection, lease)

    @classmethod
    def open(cls, path: Path, *, create: bool = False, lease: float = LEASE) -> "Store":
        """Open the store at ``path``, or start one.

        Args:
            path: The file.
            create: Make a new store where there is no file.
            lease: Seconds for which a claim of this worker holds.

        Raises:
            CheckpointError: There is no file, or it is damaged, of another format or not a store.
            LockedError: Another process keeps it locked.
            StorageError: The disk is full, read-only or failing.
        """
        if not create and not path.is_file():
            raise CheckpointError(f"{path}: there is no results file")
        store = cls(path, connect(path), lease)
        try:
            with transaction(store.connection, path):
                store._start(create=create)
        except BaseException:
            store.close()
            raise
        return store

    def _start(self, *, create: bool) -> None:
        """Make the tables of a new file, or check those of an old one."""
        database = self.connection
        if database.execute("PRAGMA quick_check").fetchone()[0] != "ok":
            raise CheckpointError(f"{self.path}: this results file is damaged; move it away")
        found = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        if not found and create:
            for table, columns in TABLES.items():
                database.execute(f"CREATE TABLE {table} ({columns})")
            database.execute("INSERT INTO run VALUES ('format', ?)", (FORMAT,))
        elif not {"run", "cells"} <= found:
            raise CheckpointError(f"{self.path}: an SQLite file, but not one of results")
        else:
            self._require_format()

    def _require_format(self) -> None:
        stored = dict(self.connection.execute("SELECT key, value FROM run").fetchall())
        found = stored.get("format", "1")
        if found != FORMAT:
            raise CheckpointError(
                f"{self.path}: holds results of format {found}, and this version writes format "
                f"{FORMAT}; choose another folder, or add --force to replace them"
            )

    def __getitem__(self, key: str) -> Any:
        """Return something that was noted about the run; ``None`` if it was not."""
        with explained(self.path):
            query = "SELECT value FROM run WHERE key = ?"
            row = self.connection.execute(query, (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def note(self, **values: Any) -> None:
        """Note JSON-like data about the run, in place of what was noted under the same key."""
        rows = [(key, _json(key, value)) for key, value in values.items()]
        with transaction(self.connection, self.path):
            self.connection.executemany("INSERT OR REPLACE INTO run VALUES (?, ?)", rows)

    def begin(self, plan: str, judged: Iterable[Judged], **values: Any) -> None:
        """Begin a plan; the cells of an earlier one stay in the store, and leave every table.

        Args:
            plan: Digest of it. If it is the plan of the store already, another worker of the same
                recipe began it, and what that one planned stays.
            judged: Who rates the answers of which measure.
            values: What else is noted about the run.
        """
        rows = [(key, _json(key, value)) for key, value in {**values, "plan": plan}.items()]
        with transaction(self.connection, self.path):
            if self["plan"] != plan:
                for table in PLAN:
                    self.connection.execute(f"DELETE FROM {table}")
                self.connection.execute("DELETE FROM run WHERE key != 'format'")
            self.connection.executemany("INSERT OR REPLACE INTO run VALUES (?, ?)", rows)
            self.connection.executemany("INSERT OR REPLACE INTO judged VALUES (?, ?, ?, ?)", judged)

    def plan(self, cells: Iterable[Planned]) -> None:
        """Add cells to the plan, in order; those that are in it already stay where they are."""
        rows = [
            (row.label, row.name, *row.cell, row.strength)  # the cell in the order of its fields
            for row in cells
        ]
        with transaction(self.connection, self.path):
            self.connection.executemany(
                "INSERT INTO planned VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                rows,
            )

    def is_finished(self, cell: Cell) -> bool:
        """Return whether the cell has been measured."""
        with explained(self.path):
            return self._id_of(cell) is not None

    def _id_of(self, cell: Cell) -> int | None:
        row = self.connection.execute(f"SELECT id FROM cells WHERE {_IS_CELL}", cell).fetchone()
        return None if row is None else int(row[0])

    @contextmanager
    def claimed(self, cells: Iterable[Cell]) -> Generator[list[Cell]]:
        """Claim those of ``cells`` that are neither finished nor claimed, for a ``with`` block."""
        by_key = {key_of(cell): cell for cell in cells}
        with self.holding(lambda: [k for k, c in by_key.items() if self._id_of(c) is None]) as keys:
            yield [by_key[key] for key in keys]

    @contextmanager
    def holding(self, wanted: Any) -> Generator[list[str]]:
        """Claim those keys of ``wanted()`` that nobody else has, and renew the claims meanwhile."""
        with transaction(self.connection, self.path):
            taken = self.claims.take(wanted())
        try:
            with self.claims.renewed():
                yield taken
        finally:
            with transaction(self.connection, self.path):
                self.claims.drop(taken)

    def write(self, cell: Cell, found: Findings, seconds: float) -> bool:
        """Write what was found in a cell, in one transaction, unless it is there already.

        Returns:
            Whether it was written. Where the claim ran out and another worker took the cell, what
            that worker finds stands.

        Raises:
            NonFiniteError: A number is NaN or infinite; nothing is written.
            DataError: Two answers or two readings have the same key; nothing is written.
            LockedError: Another process keeps the file locked.
            StorageError: The disk is full, read-only or failing.
        """
        require_finite(found, cell)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with transaction(self.connection, self.path):
            if self.claims.is_lost(key_of(cell)) or self._id_of(cell) is not None:
                log.warning(
                    "%s: the lease of a cell (seed %d, strength %g) ran out while it was being "
                    "measured, and another worker took it over; what that one finds stands",
                    *(self.path, cell.seed, cell.strength),
                )
                return False
            done = self.connection.execute(
                "INSERT INTO cells VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", (*cell, seconds, now)
            )
            self._insert(int(done.lastrowid or 0), found)
            self.claims.drop([key_of(cell)])
        return True

    def _insert(self, cell: int, found: Findings) -> None:
        self.connection.executemany(
            "INSERT INTO answers VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (cell, a.item, a.sample, a.question, a.reply, "\n".join(a.traits), *_cost(a))
                for a in found.answers
            ],
        )
        self.connection.executemany(
            "INSERT INTO readings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (cell, r.measure, r.trait, r.value, r.low, r.high, r.n, r.unscored, r.unit)
                for r in found.readings
            ],
        )

    def value(self, cell: Cell, measure: str, trait: str) -> float:
        """Return one number of a finished cell.

        Raises:
            CheckpointError: The cell does not hold it.
        """
        query = "SELECT value FROM readings WHERE cell = ? AND measure = ? AND trait = ?"
        with explained(self.path):
            row = self.connection.execute(query, (self._id_of(cell), measure, trait)).fetchone()
        if row is None or row[0] is None:
            raise CheckpointError(f"{self.path}: a cell lacks {measure} of {trait or 'no trait'}")
        return float(row[0])

    def unscored(self, cell: Cell, rubric: Rubric, judge: str) -> dict[int, Answer]:
        """Return the answers of a cell that a judge has yet to rate for a rubric, by number.

        An answer of no trait is rated for every rubric.
        """
        with explained(self.path):
            number = self._id_of(cell)
            rows = self.connection.execute(
                "SELECT id, item, sample, question, reply, traits, tokens_in, tokens_out, seconds "
                "FROM answers WHERE cell = ? AND id NOT IN "
                "(SELECT answer FROM scores WHERE judge = ?) ORDER BY id",
                (number, judge),
            ).fetchall()
        found = {}
        for identifier, item, sample, question, reply, traits, *cost in rows:
            rated = tuple(traits.split("\n")) if traits else ()
            if not rated or rubric.trait in rated:
                found[int(identifier)] = Answer(item, sample, question, reply, rated, *cost)
        return found

    def with_base_replies(self, answers: Mapping[int, Answer], base: Cell) -> dict[int, Answer]:
        """Return answers, each with what the base said to the same item."""
        with explained(self.path):
            rows = self.connection.execute(
                "SELECT item, sample, reply FROM answers WHERE cell = ?", (self._id_of(base),)
            ).fetchall()
        said = {(item, sample): reply for item, sample, reply in rows}
        return {
            number: replace(answer, base_reply=said.get((answer.item, answer.sample)))
            for number, answer in answers.items()
        }

    def write_scores(self, judge: str, trait: str, scores: Mapping[int, Score]) -> None:
        """Write the scores of answers, by their numbers; a score that is there already stays."""
        rows = [(number, judge, trait, s.value, s.reason) for number, s in scores.items()]
        with transaction(self.connection, self.path):
            self.connection.executemany(
                "INSERT INTO scores VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", rows
            )

    def require_same_judge(self, judged: Iterable[Judged]) -> None:
        """Check that no other judge has the name of one that is to be added.

        Raises:
            RecipeError: One has.
        """
        with explained(self.path):
            known = self.connection.execute("SELECT name, called, trait, judge FROM judged")
            others = {tuple(row[:3]): row[3] for row in known}
        for row in judged:
            if others.get(row[:3], row.judge) != row.judge:
                raise RecipeError(
                    f"{self.path}: the recipe has another judge called {row.called}; give this one "
                    "a name of its own, as {classifier: {name: mine}} in a file"
                )

    def judge_too(self, judged: Iterable[Judged]) -> None:
        """Add judges to the plan."""
        with transaction(self.connection, self.path):
            self.connection.executemany(
                "INSERT OR REPLACE INTO judged VALUES (?, ?, ?, ?)", list(judged)
            )

    def planned(self) -> list[Planned]:
        """Return the cells of the latest recipe, in its order."""
        with explained(self.path):
            rows = self.connection.execute(
                "SELECT label, nominal, name, base, intervention, strength, measure, seed "
                "FROM planned ORDER BY position"
            ).fetchall()
        return [Planned(label, nominal, name, Cell(*cell)) for label, nominal, name, *cell in rows]

    def is_empty(self) -> bool:
        """Return whether nothing has been measured, and nobody is about to."""
        with explained(self.path):
            count = self.connection.execute("SELECT COUNT(*) FROM cells").fetchone()[0]
        return count == 0 and self.claims.others() == 0

    def close(self) -> None:
        """Fold the write-ahead log into the file and release it."""
        self.connection.close()

    def __enter__(self) -> "Store":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def key_of(cell: Cell) -> str:
    """Return the text that a cell is claimed by."""
    return "|".join(map(str, cell))


def require_finite(found: Findings, cell: Cell) -> None:
    """Check that every number is one.

    Raises:
        NonFiniteError: A number is NaN or infinite.
        DataError: A reading is not one.
    """
    for reading in found.readings:
        for value in (reading.value, reading.low, reading.high):
            if value is not None and not abs(float(value)) < float("inf"):
                raise NonFiniteError(
                    f"{reading.measure} {reading.trait}: is {value} at strength {cell.strength:g}; "
                    "only finite numbers are results"
                )


def _cost(answer: Answer) -> tuple[Any, ...]:
    return answer.tokens_in, answer.tokens_out, answer.seconds


def _json(key: str, value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise NonFiniteError(f"{key} of the run holds NaN or infinity: {error}") from error
