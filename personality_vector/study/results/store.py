"""One run's results, cell by cell.

A *cell* is one intervention at one strength. It is written whole or not at all, so a run that is
killed and started again measures exactly the cells that are missing.
"""

import hashlib
import json
import sqlite3
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from personality_vector.errors import (
    CheckpointError,
    DataError,
    NonFiniteError,
    OutputExistsError,
    some,
)
from personality_vector.study.results.export import export_frame
from personality_vector.study.results.sqlite import connect, explained, transaction
from personality_vector.study.results.tables import (
    COLUMNS,
    Answer,
    Measure,
    Table,
    definition,
    finite,
    insertion,
    key_of,
    values_of,
)

if TYPE_CHECKING:
    import pandas as pd

_DTYPES = {"TEXT": "str", "REAL": "float64", "INTEGER": "int64"}


class Results:
    """A run's ``results.sqlite``, open for reading and writing; close it or use ``with``.

    Write-ahead logging with synchronous FULL: what :meth:`write_cell` has written survives a kill
    and a power failure. Several processes may write other cells of the same run.
    """

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self._connection = connection

    @classmethod
    def open(cls, path: Path, spec: Mapping[str, Any], *, resume: bool = True) -> "Results":
        """Open the results of the run that ``spec`` describes, or start them.

        Args:
            path: The file, usually ``results.sqlite``; its folder is made.
            spec: Everything that the numbers depend on, as JSON values.
            resume: ``False`` refuses a file that exists.

        Raises:
            OutputExistsError: The file exists and ``resume`` is off, or it holds another spec;
                the top-level fields that differ are named.
            CheckpointError: The file is damaged or not a results file.
            LockedError: Another process keeps it locked.
            StorageError: The disk is full, read-only or failing.
            NonFiniteError: ``spec`` holds NaN or infinity.
        """
        canonical = _canonical(spec)
        if path.exists() and not resume:
            raise OutputExistsError(f"{path} exists; resume it or choose another folder")
        results = cls(path, connect(path))
        with results._closed_on_error():
            results._start(canonical)
            _require_same_spec(path, results.spec, json.loads(canonical))
        return results

    @classmethod
    def reopen(cls, path: Path) -> "Results":
        """Open results that exist, whatever their spec, such as to plot them.

        Raises:
            CheckpointError: There is no file, or it is damaged or not a results file.
            LockedError: Another process keeps it locked.
            StorageError: It cannot be read.
        """
        if not path.is_file():
            raise CheckpointError(f"{path}: there is no results file")
        results = cls(path, connect(path))
        with results._closed_on_error():
            results._start(None)
        return results

    def _start(self, canonical: str | None) -> None:
        """Make the tables of a new file, or check those of an old one."""
        with transaction(self._connection, self.path):
            database = self._connection
            if database.execute("PRAGMA quick_check").fetchone()[0] != "ok":
                raise CheckpointError(f"{self.path}: this results file is damaged; move it away")
            found = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
            if not found and canonical is not None:
                _create(database, canonical)
            elif not found.issuperset(COLUMNS):
                raise CheckpointError(f"{self.path}: an SQLite file, but not one of results")

    @property
    def spec(self) -> dict[str, Any]:
        """What the run was started with.

        Raises:
            CheckpointError: It is missing, or does not match its stored sha256.
        """
        with explained(self.path):
            stored = dict(self._connection.execute("SELECT key, value FROM run").fetchall())
        canonical = stored.get("spec", "")
        if _digest(canonical) != stored.get("spec_sha256"):
            raise CheckpointError(f"{self.path}: the stored spec is damaged; move the file away")
        spec: dict[str, Any] = json.loads(canonical)
        return spec

    def finished(self, intervention: str, strength: float) -> bool:
        """Return whether the cell has been written."""
        query = "SELECT 1 FROM cells WHERE intervention = ? AND strength = ?"
        with explained(self.path):
            row = self._connection.execute(query, (intervention, float(strength))).fetchone()
        return row is not None

    def write_cell(
        self,
        intervention: str,
        strength: float,
        answers: Sequence[Answer],
        measures: Sequence[Measure],
        seconds: float,
    ) -> bool:
        """Write one cell in one transaction, unless it is there already.

        Returns:
            Whether it was written; ``False`` leaves the file as it is.

        Raises:
            NonFiniteError: A number is NaN or infinite; nothing is written.
            DataError: Two answers or two measures have the same key; nothing is written.
            LockedError: Another process keeps the file locked.
            StorageError: The disk is full, read-only or failing.
        """
        where = f"{intervention} at {strength}"
        key = (intervention, finite(strength, f"the strength of {where}"))
        took = finite(seconds, f"the time of {where}")
        answer_rows = [(*key, *values_of(answer, where)) for answer in answers]
        measure_rows = [(*key, *values_of(measure, where)) for measure in measures]
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with transaction(self._connection, self.path):
            database = self._connection
            cell = database.execute(
                "INSERT INTO cells VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING", (*key, took, now)
            )
            if cell.rowcount == 0:
                return False
            database.executemany(insertion("answers"), answer_rows)
            database.executemany(insertion("measures"), measure_rows)
        return True

    def frame(self, table: Table) -> "pd.DataFrame":
        """Return a table in the order of its key; an unscored number is NaN.

        Raises:
            DataError: There is no such table.
        """
        import pandas as pd  # half a second

        if table not in COLUMNS:
            raise DataError(f"{table!r} is not a table; known are {some(COLUMNS, 4)}")
        columns = COLUMNS[table]
        query = f"SELECT * FROM {table} ORDER BY {key_of(table)}"
        with explained(self.path):
            rows = self._connection.execute(query).fetchall()
        dtypes = {name: _DTYPES[kind.split()[0]] for name, kind in columns.items()}
        return pd.DataFrame(rows, columns=list(columns)).astype(dtypes)

    def export(self, directory: Path) -> list[Path]:
        """Write ``answers`` and ``measures`` as ``.csv`` and ``.parquet``; return the four paths.

        They only mirror this file, so older ones are replaced. In the CSV a text that begins with
        ``= + - @`` gets a leading quote, since a spreadsheet would run it; Parquet is verbatim.

        Raises:
            StorageError: They cannot be written.
        """
        tables: tuple[Table, ...] = ("answers", "measures")
        return [
            path for table in tables for path in export_frame(self.frame(table), directory / table)
        ]

    def close(self) -> None:
        """Fold the write-ahead log into the file and release it."""
        self._connection.close()

    @contextmanager
    def _closed_on_error(self) -> Generator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Results":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _canonical(spec: Mapping[str, Any]) -> str:
    """Return ``spec`` as JSON that does not depend on the order of keys."""
    try:
        return json.dumps(
            spec, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
        )
    except ValueError as error:
        raise NonFiniteError(f"the spec of the run holds NaN or infinity: {error}") from error


def _digest(canonical: str) -> str:
    return hashlib.sha256(canonical.encode()).hexdigest()


def _create(database: sqlite3.Connection, canonical: str) -> None:
    for table in COLUMNS:
        database.execute(definition(table))
    rows = [("spec", canonical), ("spec_sha256", _digest(canonical))]
    database.executemany(insertion("run"), rows)


def _require_same_spec(path: Path, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    absent = object()
    fields = set(stored) | set(asked)
    other = [name for name in fields if stored.get(name, absent) != asked.get(name, absent)]
    if other:
        raise OutputExistsError(
            f"{path} holds the results of another run: {some(other)} differ; "
            "choose another folder, or restore the recipe to resume"
        )
