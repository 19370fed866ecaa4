"""What the folder of a run holds: its readings, its answers, and what it was made from."""

import statistics
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from personality_vector.checkpoint import revision_of
from personality_vector.errors import CheckpointError, foreign
from personality_vector.files import write_file
from personality_vector.files.directory import sync_tree
from personality_vector.manifest import write_manifest
from personality_vector.numeric.statistics import bootstrapped
from personality_vector.study.store import FILE, Store
from personality_vector.subject import Template
from personality_vector.subject.models import chosen_for

_FORMULA = r"^([=+\-@\t\r])"  # what a spreadsheet may execute (OWASP)

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

OBSERVATIONS = {
    "intervention": "str",
    "strength": "float64",
    "seed": "int64",
    "measure": "str",
    "trait": "str",
    "item": "str",
    "value": "float64",
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

    @contextmanager
    def opened(self) -> Generator[Store]:
        """Open the results; whatever cannot be made of them is said of the file."""
        file = self.folder / FILE
        with (
            foreign(CheckpointError, f"{file}: its content is damaged or was changed"),
            Store.open(file) as store,
        ):
            yield store

    def __getitem__(self, key: str) -> Any:
        """Return what was noted of the latest recipe: ``recipe``, ``arms``, ``measures``, ..."""
        with self.opened() as store:
            return store[key]

    def readings(self) -> pd.DataFrame:
        """Return every number of the latest recipe's cells that are finished.

        Columns: ``intervention, strength, seed, measure, judge, trait, value, low, high, n,
        unscored``; the first six are unique together. ``measure`` names one number. ``low`` and
        ``high`` are a 95 % interval, where there is one. An unscored number is NaN.
        """
        with self.opened() as store:
            measured = store.rows(
                "SELECT p.position, 0, r.rowid, p.label, p.nominal, p.seed, r.measure, '', "
                "r.trait, r.value, r.low, r.high, r.n, r.unscored "
                f"FROM {_JOINED} JOIN readings r ON r.cell = c.id"
            )
            scores = store.rows(
                "SELECT p.position, 1, j.rowid, p.label, p.nominal, p.seed, p.name, j.called, "
                f"j.trait, a.item, a.sample, s.value FROM {_SCORED} "
                "ORDER BY p.position, j.rowid, a.id"
            )
            judged = [
                (*key, *_mean([row[-3:] for row in rows]))
                for key, rows in groupby(scores, key=lambda row: row[:-3])
            ]
            return _sorted(measured + judged, 3, READINGS)

    def units(self) -> dict[str, str]:
        """Return the units of those numbers that have another than their measure."""
        with self.opened() as store:
            rows = store.rows(
                f"SELECT DISTINCT r.measure, r.unit FROM {_JOINED} JOIN readings r "
                "ON r.cell = c.id WHERE r.unit != ''"
            )
            return dict(rows)

    def answers(self) -> pd.DataFrame:
        """Return every answer of the latest recipe's cells, with each score or the reason for none.

        An answer that nobody has rated has one row, with "" for judge and trait.
        """
        columns = "p.label, p.nominal, p.seed, p.name, a.item, a.sample, a.question, a.reply"
        with self.opened() as store:
            scored = store.rows(
                f"SELECT p.position, a.id, {columns}, j.called, j.trait, s.value, s.reason "
                f"FROM {_SCORED} ORDER BY p.position, a.id, j.rowid"
            )
            rest = store.rows(
                f"SELECT p.position, a.id, {columns}, '', '', NULL, '' FROM {_JOINED} "
                "JOIN answers a ON a.cell = c.id WHERE NOT EXISTS (SELECT 1 FROM scores s "
                "JOIN judged j ON j.judge = s.judge WHERE s.answer = a.id AND j.name = p.name)"
            )
            return _sorted(scored + rest, 2, ANSWERS)

    def observations(self) -> pd.DataFrame:
        """Return the items that readings are means of, for the latest recipe's cells.

        Columns: ``intervention, strength, seed, measure, trait, item, value``.
        """
        with self.opened() as store:
            rows = store.rows(
                "SELECT p.label, p.nominal, p.seed, o.measure, o.trait, o.item, o.value "
                f"FROM {_JOINED} JOIN observations o ON o.cell = c.id ORDER BY p.position, o.rowid"
            )
        return pd.DataFrame(rows, columns=list(OBSERVATIONS)).astype(OBSERVATIONS)

    def cells(self) -> pd.DataFrame:
        """Return how many cells of the latest recipe are planned and finished, and their seconds.

        Columns: ``intervention, strength, seed, measure, finished, seconds``.
        """
        with self.opened() as store:
            rows = store.rows(
                "SELECT p.label, p.nominal, p.seed, p.name, c.id IS NOT NULL, "
                f"COALESCE(c.seconds, 0.0) FROM {_JOINED.replace('JOIN', 'LEFT JOIN')} "
                "ORDER BY p.position"
            )
            return pd.DataFrame(
                rows, columns=["intervention", "strength", "seed", "measure", "finished", "seconds"]
            ).astype({"finished": bool})

    def export(self) -> list[Path]:
        """Write ``readings`` and ``answers`` as ``.csv`` and ``.parquet``; return the four paths.

        They only mirror the store, so older ones are replaced. In the CSV a text that begins with
        ``= + - @`` gets a leading quote, since a spreadsheet would run it; Parquet is verbatim.

        Raises:
            StorageError: They cannot be written.
        """
        written = []
        for name, frame in (("readings", self.readings()), ("answers", self.answers())):
            contents = {"csv": _csv(frame).encode(), "parquet": frame.to_parquet(index=False)}
            for ending, content in contents.items():
                written.append(self.folder / f"{name}.{ending}")
                write_file(written[-1], content)
        return written

    def write_manifest(self, kind: str) -> None:
        """Write the manifest of a finished run."""
        with self.opened() as store:
            base = store["base"]
            found = {**base, **revision_of(Path(base["path"]))}
            content = {"recipe": store["recipe"], "base": found, "seeds": store["seeds"]}
            content |= {"shard": store["shard"]} if store["shard"] else {}
            content |= chosen_for(base["path"], Template(**base.get("template", {})))
        write_manifest(self.folder, kind, content)
        sync_tree(self.folder)


@dataclass(frozen=True)
class Snapshot(Run):
    """A run that reads its results once, for pages and tables that ask for them often.

    What is measured after the first question is not in it.
    """

    _kept: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def _once(self, key: str, read: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = read()
        return self._kept[key]

    def __getitem__(self, key: str) -> Any:
        """Return what was noted of the latest recipe; it is not to be changed."""
        return self._once(f"note {key}", lambda: Run.__getitem__(self, key))

    def readings(self) -> pd.DataFrame:
        """Return every number, as :meth:`Run.readings`."""
        return self._once("readings", lambda: Run.readings(self)).copy()

    def units(self) -> dict[str, str]:
        """Return the units of numbers, as :meth:`Run.units`."""
        return dict(self._once("units", lambda: Run.units(self)))

    def answers(self) -> pd.DataFrame:
        """Return every answer, as :meth:`Run.answers`."""
        return self._once("answers", lambda: Run.answers(self)).copy()

    def observations(self) -> pd.DataFrame:
        """Return the items of readings, as :meth:`Run.observations`."""
        return self._once("observations", lambda: Run.observations(self)).copy()


def _sorted(rows: list[tuple[Any, ...]], keys: int, columns: Mapping[str, str]) -> pd.DataFrame:
    """Return a table of rows in the order of their first ``keys`` values, which are left out."""
    ordered = [row[keys:] for row in sorted(rows, key=lambda row: row[:keys])]
    return pd.DataFrame(ordered, columns=list(columns)).astype(columns)


def _mean(scores: Sequence[tuple[str, int, float | None]]) -> tuple[Any, ...]:
    """Return mean, 95 % interval, number of scored and number of unscored answers."""
    values = [score for _, _, score in scores if score is not None]
    missing = len(scores) - len(values)
    mean = statistics.fmean(values) if values else None
    items = {item: row for row, item in enumerate(sorted({item for item, _, _ in scores}))}
    samples = {sample: n for n, sample in enumerate(sorted({sample for _, sample, _ in scores}))}
    wide = np.full((len(items), len(samples)), np.nan)
    for item, sample, score in scores:
        wide[items[item], samples[sample]] = np.nan if score is None else score
    low, high = bootstrapped(wide) or (None, None)
    return mean, low, high, len(values), missing


def _csv(frame: pd.DataFrame) -> str:
    safe = frame.select_dtypes("str").replace(_FORMULA, r"'\1", regex=True)
    return str(frame.assign(**safe).to_csv(index=False, lineterminator="\n"))
