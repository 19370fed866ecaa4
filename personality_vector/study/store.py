"""The results of a run, cell by cell, keyed by everything that a number depends on.

A *cell* is one measure of one intervention at one strength with one seed, on one base. It is
written whole or not at all, and never twice: after a recipe changes, finished cells are reused
and only missing ones are measured.
"""

import json
import logging
import math
import sqlite3
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from personality_vector.errors import (
    CheckpointError,
    NonFiniteError,
    RecipeError,
    VerificationError,
)
from personality_vector.files.reading import parse_json
from personality_vector.files.sqlite import Database
from personality_vector.study.claims import LEASE, Claims
from personality_vector.study.database import (
    DIGEST,
    FORMAT,
    MEASURED,
    TABLES,
    Judged,
    Planned,
    connected,
    mixed,
    trigger_of,
)
from personality_vector.subject import Answer, Cell, Findings, Place, Rubric, Score

log = logging.getLogger(__name__)

FILE = "results.sqlite"
_NO_ROWS = "0" * 32
_checked = set[tuple[Path, str]]()
"""Files and their digests that this process has compared already."""

_IS_CELL = "base = ? AND intervention = ? AND strength = ? AND measure = ? AND seed = ?"


class Store(Database):
    """A run's ``results.sqlite``, open for reading and writing.

    Write-ahead logging with synchronous FULL: what has been written survives a kill and a power
    failure. Any number of processes of one machine may work on it.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection, lease: float) -> None:
        super().__init__(path, connection)
        self.claims = Claims(self, lease)

    @classmethod
    @contextmanager
    def open(cls, path: Path, *, create: bool = False, lease: float = LEASE) -> Generator["Store"]:
        """Open the store at ``path``, or start one, for a ``with`` block.

        Args:
            path: The file.
            create: Make a new store where there is no file.
            lease: Seconds for which a claim of this worker holds.

        Raises:
            CheckpointError: There is no file, or it is damaged, of another format or not a store.
            LockedError: Another process keeps it locked.
            StorageError: The disk is full, read-only or failing.
            VerificationError: Its results were changed after they were written.
        """
        if not create and not path.is_file():
            raise CheckpointError(f"{path}: there is no results file")
        with connected(path) as connection:
            store = cls(path, connection, lease)
            with store.transaction():
                store._start(create=create)
            yield store

    def _start(self, *, create: bool) -> None:
        """Make the tables of a new file, or check those of an old one."""
        if self.rows("PRAGMA quick_check") != [("ok",)]:
            raise CheckpointError(f"{self.path}: this results file is damaged; move it away")
        found = {name for (name,) in self.rows("SELECT name FROM sqlite_master")}
        if not found and create:
            for table in TABLES:
                self._create(table)
            self._note({"format": FORMAT})
            self.connection.execute("INSERT INTO run VALUES (?, ?)", (DIGEST, _NO_ROWS))
        elif not {"run", "cells"} <= found:
            raise CheckpointError(
                f"{self.path}: is an SQLite file without results; move it away, or choose "
                "another folder"
            )
        elif (stored := self["format"] or 1) != FORMAT:
            raise CheckpointError(
                f"{self.path}: holds results of format {stored}, but this version writes format "
                f"{FORMAT}; choose another folder, or start again with --force"
            )
        elif "observations" not in found:  # an earlier version had none
            self._create("observations")
        self._require_unchanged()

    def _create(self, table: str) -> None:
        self.connection.execute(f"CREATE TABLE {table} ({TABLES[table]})")
        if table in MEASURED:
            names = [row[1] for row in self.rows(f"PRAGMA table_info({table})")]
            self.connection.execute(trigger_of(table, names))

    def _require_unchanged(self) -> None:
        """Check that every result is as it was written; once for each state of a file."""
        noted = self.rows("SELECT value FROM run WHERE key = ?", (DIGEST,))
        # A store of an earlier version notes nothing.
        if not noted or (self.path, noted[0][0]) in _checked:
            return
        found = _NO_ROWS
        for table in MEASURED:
            for row in self.rows(f"SELECT * FROM {table}"):
                found = mixed(found, table, *row)
        if found != noted[0][0]:
            raise VerificationError(
                f"{self.path}: its results were changed after they were written; restore the file, "
                "or measure again with --force"
            )
        _checked.add((self.path, found))

    def __getitem__(self, key: str) -> Any:
        """Return a note about the run, or ``None`` if there is none."""
        found = self.rows("SELECT value FROM run WHERE key = ?", (key,))
        try:
            return parse_json(found[0][0]) if found else None
        except ValueError as error:
            raise CheckpointError(f"{self.path}: the note {key} is damaged") from error

    def note(self, **values: Any) -> None:
        """Note JSON-like data about the run, in place of what was noted under the same key."""
        with self.transaction():
            self._note(values)

    def _note(self, values: Mapping[str, Any]) -> None:
        self.connection.executemany(
            "INSERT OR REPLACE INTO run VALUES (?, ?)",
            [(key, _json(key, value)) for key, value in values.items()],
        )

    def begin(self, plan: str, judged: Iterable[Judged], **values: Any) -> None:
        """Begin a plan; the cells of an earlier one stay in the store but appear in no table.

        Args:
            plan: Digest of it. If it is the plan of the store already, another worker of the same
                recipe began it, and what that one planned stays.
            judged: Who rates the answers of which measure.
            values: Further notes about the run.
        """
        with self.transaction():
            if self["plan"] == plan:  # a judge that was added stays
                values["judges"] = {**values["judges"], **self["judges"]}
            else:
                for old in ("planned", "judged", f"run WHERE key NOT IN ('format', '{DIGEST}')"):
                    self.connection.execute(f"DELETE FROM {old}")
            self._note({**values, "plan": plan})
            self._judge(judged)

    def plan(self, plan: str, cells: Iterable[Planned]) -> None:
        """Add cells to the plan, in order; those that are in it already stay where they are.

        Raises:
            RecipeError: Another plan was started meanwhile.
        """
        # The fields of a cell are in the order of the columns.
        rows = [(row.label, row.name, *row.cell, row.strength) for row in cells]
        with self.transaction():
            if self["plan"] not in (None, plan):
                raise RecipeError(
                    f"{self.path.parent}: another recipe was started there, and the folder now has "
                    "its tables; nothing is lost: run this recipe again to get its tables"
                )
            self.connection.executemany(
                "INSERT INTO planned VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                rows,
            )

    def is_finished(self, cell: Cell) -> bool:
        """Return whether the cell has been measured."""
        return self._id_of(cell) is not None

    def _id_of(self, cell: Cell) -> int | None:
        found = self.rows(f"SELECT id FROM cells WHERE {_IS_CELL}", cell)
        return int(found[0][0]) if found else None

    @contextmanager
    def claimed(self, cells: Iterable[Cell]) -> Generator[list[Cell]]:
        """Claim those of ``cells`` that are neither finished nor claimed, for a ``with`` block."""
        by_key = {key_of(cell): cell for cell in cells}
        with self.claims.held(
            lambda: [key for key, cell in by_key.items() if not self.is_finished(cell)]
        ) as keys:
            yield [by_key[key] for key in keys]

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
        _require_finite(found, cell)
        with self.transaction():
            if self.claims.is_lost(key_of(cell)) or self.is_finished(cell):
                log.warning(
                    "%s: the lease of a cell (seed %d, strength %g) ran out while it was being "
                    "measured, and another worker took it over, whose result counts",
                    *(self.path, cell.seed, cell.strength),
                )
                return False
            self._insert(cell, found, seconds)
            self.claims.drop([key_of(cell)])
        return True

    def _insert(self, cell: Cell, found: Findings, seconds: float) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        done = self.connection.execute(
            "INSERT INTO cells VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", (*cell, seconds, now)
        )
        self.connection.executemany(
            f"INSERT INTO answers VALUES (NULL, {done.lastrowid}, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    a.item,
                    a.sample,
                    a.question,
                    a.reply,
                    "\n".join(a.traits),
                    a.tokens_in,
                    a.tokens_out,
                    a.seconds,
                )
                for a in found.answers
            ],
        )
        self.connection.executemany(
            f"INSERT INTO readings VALUES ({done.lastrowid}, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    r.measure,
                    r.trait,
                    *map(_real, (r.value, r.low, r.high)),
                    *map(int, (r.n, r.unscored)),
                    r.unit,
                )
                for r in found.readings
            ],
        )
        self.connection.executemany(
            f"INSERT INTO observations VALUES ({done.lastrowid}, ?, ?, ?, ?)",
            [(*key, _real(value)) for *key, value in found.observations],
        )

    def value(self, cell: Cell, measure: str, trait: str, judge: str = "") -> float | None:
        """Return one number of a finished cell, or the mean score of a judge, if there is any.

        ``judge`` is the digest that its scores are kept under.
        """
        number = self._id_of(cell)
        read = "SELECT value FROM readings WHERE cell = ? AND measure = ? AND trait = ?"
        rate = (
            "SELECT AVG(value) FROM answers JOIN scores ON answer = id WHERE cell = ? AND judge = ?"
        )
        found = (
            self.rows(rate, (number, judge)) if judge else self.rows(read, (number, measure, trait))
        )
        return None if not found or found[0][0] is None else float(found[0][0])

    def unscored(
        self, cell: Cell, rubric: Rubric | None, judge: str, place: Place | None = None
    ) -> dict[int, Answer]:
        """Return the answers of a cell that a judge has yet to rate for a rubric, by number.

        Each carries what the base said to the same item, and ``place``. An answer of no trait is
        rated for every rubric; ``None`` stands for all rubrics.
        """
        base = cell._replace(intervention=cell.base, strength=0.0)
        rows = self.rows(
            "SELECT a.id, a.item, a.sample, a.question, a.reply, a.traits, a.tokens_in, "
            "a.tokens_out, a.seconds, b.reply FROM answers a "
            "LEFT JOIN answers b ON b.cell = ? AND b.item = a.item AND b.sample = a.sample "
            "WHERE a.cell = ? AND a.id NOT IN (SELECT answer FROM scores WHERE judge = ?) "
            "ORDER BY a.id",
            (self._id_of(base), self._id_of(cell), judge),
        )
        answers = {
            number: Answer(
                item, sample, question, reply, tuple(filter(None, traits.split("\n"))), *rest
            )
            for number, item, sample, question, reply, traits, *rest in rows
        }
        return {
            number: replace(answer, place=place)
            for number, answer in answers.items()
            if rubric is None or not answer.traits or rubric.trait in answer.traits
        }

    def write_scores(self, judge: str, trait: str, scores: Mapping[int, Score]) -> None:
        """Write the scores of answers, by their numbers; a score that is there already stays."""
        with self.transaction():
            self.connection.executemany(
                "INSERT INTO scores VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                [(number, judge, trait, _real(s.value), s.reason) for number, s in scores.items()],
            )

    def require_same_judge(self, judged: Iterable[Judged]) -> None:
        """Check that no other judge has the name of one that is to be added.

        Raises:
            RecipeError: Another judge has this name.
        """
        others = {row[:3]: row[3] for row in self.rows("SELECT * FROM judged")}
        for row in judged:
            if others.get(row[:3], row.judge) != row.judge:
                raise RecipeError(
                    f"{self.path}: the recipe has another judge called {row.called}; give this one "
                    "a name of its own, as {classifier: {name: mine}} in a file"
                )

    def add_judges(self, judged: Iterable[Judged], judges: Mapping[str, Any]) -> None:
        """Add judges to the plan, and note their scale and quality."""
        with self.transaction():
            self._judge(judged)
            self._note({"judges": {**self["judges"], **judges}})

    def _judge(self, judged: Iterable[Judged]) -> None:
        self.connection.executemany("INSERT OR REPLACE INTO judged VALUES (?, ?, ?, ?)", judged)

    def planned(self) -> list[Planned]:
        """Return the cells of the latest recipe, in its order."""
        rows = self.rows("SELECT * FROM planned ORDER BY position")
        return [
            Planned(label, nominal, name, Cell(*cell)) for _, label, name, *cell, nominal in rows
        ]

    def is_empty(self) -> bool:
        """Return whether nothing has been measured and nobody is measuring."""
        return not self.rows("SELECT 1 FROM cells LIMIT 1") and not self.claims.of_others()


def _real(value: Any) -> float | None:
    """Return a number of Python, numpy or torch as SQLite takes it."""
    return None if value is None else float(value)


def key_of(cell: Cell) -> str:
    """Return the text that a cell is claimed by."""
    return "|".join(map(str, cell))


def _require_finite(found: Findings, cell: Cell) -> None:
    for reading in found.readings:
        for value in (reading.value, reading.low, reading.high):
            if value is not None and not math.isfinite(value):
                raise NonFiniteError(
                    f"{reading.measure} {reading.trait}: is {value} at strength {cell.strength:g}; "
                    "only finite numbers are results"
                )
    for one in found.observations:
        if not math.isfinite(one.value):
            raise NonFiniteError(
                f"{one.measure} {one.trait}: {one.item} is {one.value}; only finite numbers are "
                "results"
            )


def _json(key: str, value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise NonFiniteError(f"{key} of the run holds NaN or infinity: {error}") from error
