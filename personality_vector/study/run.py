"""What the folder of a run holds: its readings, its answers, and what it was made from."""

import sqlite3
import statistics
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from personality_vector.errors import CheckpointError
from personality_vector.manifest import MANIFEST, write_manifest
from personality_vector.study.store.export import export_frame
from personality_vector.study.store.sqlite import explained
from personality_vector.study.store.store import FILE, Store

Z95 = 1.959963984540054

READINGS = {
    "intervention": "str",
    "strength": "float64",
    "seed": "int64",
    "measure": "str",
    "judge": "str",
    "trait": "str",
    "value": "float64",
    "low": "float64",
    "high": "float64",
    "n": "int64",
    "unscored": "int64",
}
"""The columns of ``readings.csv``; the first six are unique together."""

ANSWERS = {
    "intervention": "str",
    "strength": "float64",
    "seed": "int64",
    "measure": "str",
    "item": "str",
    "sample": "int64",
    "question": "str",
    "reply": "str",
    "judge": "str",
    "trait": "str",
    "score": "float64",
    "reason": "str",
}

_JOINED = (
    "planned p JOIN cells c ON c.base = p.base AND c.intervention = p.intervention "
    "AND c.strength = p.strength AND c.measure = p.measure AND c.seed = p.seed"
)

_SCORED = (
    f"{_JOINED} JOIN answers a ON a.cell = c.id JOIN judged j ON j.name = p.name "
    "JOIN scores s ON s.answer = a.id AND s.judge = j.judge"
)


@dataclass(frozen=True, slots=True)
class Run:
    """A folder that a study was run in, whether or not it is finished.

    Attributes:
        folder: With ``results.sqlite``.
    """

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder))
        if not (self.folder / FILE).is_file():
            raise CheckpointError(f"{self.folder / FILE}: there is no results file")

    def __getitem__(self, key: str) -> Any:
        """Return what was noted of the latest recipe: ``recipe``, ``arms``, ``measures``, ..."""
        with Store.open(self.folder / FILE) as store:
            return store[key]

    def readings(self) -> pd.DataFrame:
        """Return every number of the latest recipe's cells that are finished.

        Columns: ``intervention, strength, seed, measure, judge, trait, value, low, high, n,
        unscored``; the first six are unique together. ``measure`` names one number. ``low`` and
        ``high`` are a 95 % interval, where there is one. An unscored number is NaN.
        """
        with Store.open(self.folder / FILE) as store, explained(store.path):
            rows = _measured(store.connection) + _judged(store.connection)
        ordered = [row[1:] for row in sorted(rows, key=lambda row: row[0])]
        return pd.DataFrame(ordered, columns=list(READINGS)).astype(READINGS)

    def units(self) -> dict[str, str]:
        """Return the units of those numbers that have another than their measure."""
        with Store.open(self.folder / FILE) as store, explained(store.path):
            rows = store.connection.execute(
                f"SELECT DISTINCT r.measure, r.unit FROM {_JOINED} JOIN readings r "
                "ON r.cell = c.id WHERE r.unit != ''"
            ).fetchall()
        return dict(rows)

    def answers(self) -> pd.DataFrame:
        """Return every answer of the latest recipe's cells, with each score or the reason for none.

        An answer that nobody has rated has one row, with "" for judge and trait.
        """
        columns = "p.label, p.nominal, p.seed, p.name, a.item, a.sample, a.question, a.reply"
        with Store.open(self.folder / FILE) as store, explained(store.path):
            scored = store.connection.execute(
                f"SELECT p.position, a.id, {columns}, j.called, j.trait, s.value, s.reason "
                f"FROM {_SCORED} ORDER BY p.position, a.id, j.rowid"
            ).fetchall()
            rest = store.connection.execute(
                f"SELECT p.position, a.id, {columns}, '', '', NULL, '' FROM {_JOINED} "
                "JOIN answers a ON a.cell = c.id WHERE NOT EXISTS (SELECT 1 FROM scores s "
                "JOIN judged j ON j.judge = s.judge WHERE s.answer = a.id AND j.name = p.name)"
            ).fetchall()
        ordered = [row[2:] for row in sorted(scored + rest, key=lambda row: row[:2])]
        return pd.DataFrame(ordered, columns=list(ANSWERS)).astype(ANSWERS)

    def cells(self) -> pd.DataFrame:
        """Return how many cells of the latest recipe are planned and finished, and their seconds.

        Columns: ``intervention, strength, seed, measure, finished, seconds``.
        """
        with Store.open(self.folder / FILE) as store, explained(store.path):
            rows = store.connection.execute(
                "SELECT p.label, p.nominal, p.seed, p.name, c.id IS NOT NULL, "
                f"COALESCE(c.seconds, 0.0) FROM {_JOINED.replace('JOIN', 'LEFT JOIN')} "
                "ORDER BY p.position"
            ).fetchall()
        names = ["intervention", "strength", "seed", "measure", "finished", "seconds"]
        return pd.DataFrame(rows, columns=names).astype({"finished": bool})

    def export(self) -> list[Path]:
        """Write ``readings`` and ``answers`` as ``.csv`` and ``.parquet``; return the four paths.

        They only mirror the store, so older ones are replaced. In the CSV a text that begins with
        ``= + - @`` gets a leading quote, since a spreadsheet would run it; Parquet is verbatim.

        Raises:
            StorageError: They cannot be written.
        """
        tables = {"readings": self.readings(), "answers": self.answers()}
        return [
            path
            for name, frame in tables.items()
            for path in export_frame(frame, self.folder / name)
        ]

    def write_manifest(self, kind: str) -> None:
        """Write the manifest of a finished run."""
        (self.folder / MANIFEST).unlink(missing_ok=True)
        with Store.open(self.folder / FILE) as store:
            content = {"recipe": store["recipe"], "base": store["base"], "seeds": store["seeds"]}
        write_manifest(self.folder, kind, content)

    @staticmethod
    def require_results(path: Path) -> None:
        """Check that a file is a store of ours, of whatever format.

        Raises:
            CheckpointError: It is not.
        """
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
                found = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
        except sqlite3.Error as error:
            raise CheckpointError(f"{path}: not a results file, or a damaged one") from error
        if not {"run", "cells", "answers"} <= found:
            raise CheckpointError(f"{path}: an SQLite file, but not one of results")


def _measured(database: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """Return the readings of measures: where they stand, and the columns of the table."""
    rows: list[tuple[Any, ...]] = database.execute(
        "SELECT p.position, r.rowid, p.label, p.nominal, p.seed, r.measure, '', r.trait, r.value, "
        f"r.low, r.high, r.n, r.unscored FROM {_JOINED} JOIN readings r ON r.cell = c.id"
    ).fetchall()
    return [((position, 0, rowid), *row) for position, rowid, *row in rows]


def _judged(database: sqlite3.Connection) -> list[tuple[Any, ...]]:
    """Return the mean scores of judges, likewise."""
    rows = database.execute(
        "SELECT p.position, j.rowid, p.label, p.nominal, p.seed, p.name, j.called, j.trait, "
        f"s.value FROM {_SCORED} ORDER BY p.position, j.rowid, a.id"
    ).fetchall()
    groups: dict[tuple[Any, ...], list[float | None]] = {}
    for *key, value in rows:
        groups.setdefault(tuple(key), []).append(value)
    return [
        ((position, 1, rowid), *key, *_mean(values))
        for (position, rowid, *key), values in groups.items()
    ]


def _mean(scores: Sequence[float | None]) -> tuple[Any, ...]:
    """Return mean, 95 % interval, number of scored and number of unscored answers."""
    values = [score for score in scores if score is not None]
    missing = len(scores) - len(values)
    if not values:
        return None, None, None, 0, missing
    mean = statistics.fmean(values)
    if len(values) == 1:
        return mean, None, None, 1, missing
    half = Z95 * statistics.stdev(values) / len(values) ** 0.5
    return mean, mean - half, mean + half, len(values), missing
