"""Shards: parts of a study that are measured in folders of their own, and the union of these."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from personality_vector.errors import CheckpointError, OutputExistsError, RecipeError, some
from personality_vector.study.database import Judged
from personality_vector.study.design import Point, grid_of
from personality_vector.study.replacing import remove_if_empty, require_free
from personality_vector.study.run import Run
from personality_vector.study.store import FILE, Store
from personality_vector.subject import Cell

if TYPE_CHECKING:
    from personality_vector.study.study import Study
    from personality_vector.study.worker import Worker

_SHARD = re.compile(r"([1-9]\d{0,8})/([1-9]\d{0,8})", re.ASCII)

_ROWS = {
    "answers": "item, sample, question, reply, traits, tokens_in, tokens_out, seconds",
    "readings": "measure, trait, value, low, high, n, unscored, unit",
    "observations": "measure, trait, item, value",
}
"""The tables whose rows belong to a cell, and their columns without its number."""

_OF_THE_MACHINE = ("seconds", "GB")
"""Units of readings that are different each time."""

_TOLERANCE = 1e-3
"""Relative and absolute difference between numbers of two machines that count as the same."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A design: every ``count``-th point of the grid, and the base with the seeds of these points.

    The whole grid is planned, so that the report of a shard says how much of it is measured.

    Attributes:
        index: Number of the shard, from 1.
        count: Number of shards.
    """

    index: int
    count: int

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read ``i/n``.

        Raises:
            RecipeError: The text is something else, or ``i`` is larger than ``n``.
        """
        found = _SHARD.fullmatch(text)
        shard = cls(int(found[1]), int(found[2])) if found else None
        if shard is None or shard.index > shard.count:
            raise RecipeError(
                f"--shard {text!r:.40}: write i/n, such as 1/8 for the first of eight"
            )
        return shard

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def points(self, study: "Study") -> tuple[list[Point], list[Point]]:
        """Return what this shard measures of the base, and of the rest of the grid."""
        base, rest = grid_of(study)
        if not rest:
            return base[self.index - 1 :: self.count], []
        own = rest[self.index - 1 :: self.count]
        seeds = {point.seed for point in own}
        return [point for point in base if point.seed in seeds], own

    def batches(self, worker: "Worker") -> Iterator[Sequence[Point]]:
        """Plan the whole grid, and yield this shard's part of it."""
        base, rest = grid_of(worker.study)
        swept = worker.study.swept
        worker.plan(base, worker.study.measures)
        worker.plan(rest, swept)
        base, rest = self.points(worker.study)
        yield base
        worker.take(rest, swept)


def sharded(study: "Study", shard: Shard) -> "Study":
    """Return a study that measures one shard of the grid, and nothing that its design adds later.

    Raises:
        RecipeError: The grid has fewer points than there are shards.
    """
    points = len(grid_of(study)[1]) or len(study.seeds)
    if shard.count > points:
        raise RecipeError(
            f"--shard {shard}: the recipe has {points} points to divide, so use at most "
            f"{points} shards"
        )
    return replace(study, design=shard)


def require_own_folder(store: Store, plan: str, shard: Shard) -> None:
    """Refuse a folder that holds something else of the same recipe.

    Raises:
        OutputExistsError: It holds another shard or the whole.
    """
    held = store["shard"]
    if store["plan"] == plan and held != [shard.index, shard.count]:
        name = f"shard {held[0]}/{held[1]}" if held else "all"
        raise OutputExistsError(
            f"{store.path.parent}: holds {name} of this recipe; choose another --out for shard "
            f"{shard}"
        )


def unite(folders: Sequence[Path], out: Path) -> Run:
    """Write the union of what folders hold of one recipe, as the folder of a run.

    It can be resumed and added to like any other. Where it exists already, what it lacks is added.
    All cells appear at once or not at all; repeating an interrupted call completes it.

    Args:
        folders: Shards, or other runs of the same recipe, finished or not.
        out: Another folder; it is created if missing.

    Raises:
        CheckpointError: A folder does not exist, is damaged, of another format or of another
            version, or holds another value for a cell.
        RecipeError: A folder is of another recipe or has other inputs.
        OutputExistsError: ``out`` is one of them, or holds something else.
    """
    real = [folder.resolve() for folder in folders]
    if out.resolve() in real:
        raise OutputExistsError(f"{out}: is one of the folders to unite; choose another --out")
    if len(set(real)) < len(real):
        raise RecipeError(f"{some(map(str, folders))}: name each folder once")
    with ExitStack() as stack:
        stores = [stack.enter_context(Run(folder).opened()) for folder in folders]
        _require_one_study(stores)
        is_new = require_free(out)
        with Store.open(out / FILE, create=True) as store:
            try:
                if store["plan"] is not None:
                    _require_one_study([stores[0], store])
                _begin(store, stores)
                with store.transaction():
                    for one in stores:
                        _add(store, one)
            except BaseException:
                remove_if_empty(store, out, is_new=is_new)
                raise
    return Run(out)


def absent(folders: Sequence[Path]) -> list[str]:
    """Return the shards that none of the folders is, such as ``["3/4"]``."""
    given = [shard for folder in folders if (shard := Run(folder)["shard"])]
    counts = {count for _, count in given}
    held = {index for index, _ in given}
    if len(given) < len(folders) or len(counts) != 1:
        return []
    (count,) = counts
    return [f"{index}/{count}" for index in range(1, count + 1) if index not in held]


def _require_one_study(stores: Sequence[Store]) -> None:
    """Refuse stores that are not of one recipe, one set of inputs and one version."""
    first, *others = stores
    if first["plan"] is None:
        raise CheckpointError(f"{first.path}: holds no recipe yet; run its recipe there first")
    for other in others:
        names = f"{other.path.parent}: %s {first.path.parent}%s"
        mine, theirs = first["recipe"], other["recipe"] or {}
        if changed := sorted(key for key in {*mine, *theirs} if mine.get(key) != theirs.get(key)):
            raise RecipeError(
                names % ("is of another recipe than", f", with another value of {some(changed)}")
            )
        versions = [one["version"] or "an earlier version" for one in (other, first)]
        if len(set(versions)) > 1:
            raise CheckpointError(
                names % (f"was measured by personality-vector {versions[0]}, and", "")
                + f" by {versions[1]}; measure both with the same version"
            )
        if first["plan"] != other["plan"]:
            raise RecipeError(
                names
                % ("has the recipe of", " but other inputs: the model, or a file that it reads")
            )
        _require_same_judges(first, other)


def _require_same_judges(first: Store, other: Store) -> None:
    known = {row[:3]: row[3] for row in first.rows("SELECT * FROM judged")}
    for *key, digest in other.rows("SELECT * FROM judged"):
        if known.get(tuple(key), digest) != digest:
            raise RecipeError(
                f"{other.path.parent}: its judge {key[1]} is not that of {first.path.parent}; let "
                "one judge rate both"
            )


def _begin(store: Store, stores: Sequence[Store]) -> None:
    """Note and plan what the stores have in common, and all of their judges."""
    most = max(stores, key=lambda one: len(one.planned()))
    keys = most.rows("SELECT key FROM run WHERE key NOT IN ('format', 'digest', 'plan')")
    notes = {key: most[key] for (key,) in keys}
    store.begin(most["plan"], (), **notes | {"shard": None})
    store.plan(most["plan"], most.planned())
    for one in stores:
        known = set(store.rows("SELECT * FROM judged"))
        judged = [row for row in one.rows("SELECT * FROM judged") if row not in known]
        store.add_judges([Judged(*row) for row in judged], one["judges"])


def _add(store: Store, one: Store) -> None:
    """Add those cells and scores of another store that this one lacks, inside a transaction.

    Raises:
        CheckpointError: Both hold a cell with different values.
    """
    ids = {Cell(*cell): number for number, *cell in store.rows(f"SELECT id, {_KEY} FROM cells")}
    for number, seconds, at, *key in one.rows(
        f"SELECT id, seconds, finished_at, {_KEY} FROM cells ORDER BY id"
    ):
        cell, found = Cell(*key), _rows_of(one, number)
        if cell in ids:
            _require_same(one, cell, found, _rows_of(store, ids[cell]))
        else:
            ids[cell] = _insert(store, (*cell, seconds, at), found)
        scores = one.rows(
            "SELECT s.judge, s.trait, s.value, s.reason, a.item, a.sample FROM answers a "
            "JOIN scores s ON s.answer = a.id WHERE a.cell = ? ORDER BY s.rowid",
            (number,),
        )
        store.connection.executemany(
            "INSERT INTO scores SELECT id, ?, ?, ?, ? FROM answers "
            f"WHERE item = ? AND sample = ? AND cell = {ids[cell]} ON CONFLICT DO NOTHING",
            scores,
        )


_KEY = ", ".join(Cell._fields)


def _rows_of(store: Store, number: int) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows of every table about a cell, in the order in which they were written."""
    return {
        table: store.rows(f"SELECT {columns} FROM {table} WHERE cell = ? ORDER BY rowid", (number,))
        for table, columns in _ROWS.items()
    }


def _insert(
    store: Store, cell: tuple[Any, ...], found: Mapping[str, Sequence[tuple[Any, ...]]]
) -> int:
    done = store.connection.execute("INSERT INTO cells VALUES (NULL, ?, ?, ?, ?, ?, ?, ?)", cell)
    for table, columns in _ROWS.items():
        marks = ", ".join("?" * len(columns.split(", ")))
        store.connection.executemany(
            f"INSERT INTO {table} (cell, {columns}) VALUES ({done.lastrowid}, {marks})",
            found[table],
        )
    return int(done.lastrowid or 0)


def _require_same(
    one: Store,
    cell: Cell,
    found: Mapping[str, Sequence[tuple[Any, ...]]],
    known: Mapping[str, Sequence[tuple[Any, ...]]],
) -> None:
    """Check that two stores hold the same in a cell, but for rounding and what a machine takes."""
    for table in _ROWS:
        ours, theirs = (
            [value for row in rows[table] for value in _values(table, row)]
            for rows in (found, known)
        )
        if len(ours) != len(theirs) or not all(map(_is_close, ours, theirs)):
            place = next((row for row in one.planned() if row.cell == cell), None)
            name = f"{place.name} of {place.label}" if place else "a cell of an earlier recipe"
            raise CheckpointError(
                f"{one.path.parent}: its {name} at strength {cell.strength:g}, seed {cell.seed}, "
                f"has other {table} than another of the folders has; measure one of the two again, "
                "on a machine like the other's"
            )


def _values(table: str, row: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return what must be the same of a row wherever it was measured."""
    if table == "answers":
        return row[:-1]
    return row[:2] if table == "readings" and row[-1] in _OF_THE_MACHINE else row


def _is_close(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return bool(one == other)
