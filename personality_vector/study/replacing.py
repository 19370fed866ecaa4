"""Replacing the results of a folder: the old ones stay until there are new ones."""

import sqlite3
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

from personality_vector.errors import CheckpointError, OutputExistsError
from personality_vector.files.reading import parse_json
from personality_vector.files.sqlite import explained
from personality_vector.study.store import FILE, Store

# Prefix of the names of results that are about to be replaced.
_OLD = ".old-"


def require_free(out: Path) -> bool:
    """Give results that a killed process put aside their name again, and return whether it is new.

    Raises:
        OutputExistsError: ``out`` exists and is not a results folder.
    """
    if not (out / FILE).exists():
        _restore(out)
    is_new = not out.exists()
    if not is_new and not (out / FILE).exists() and any(out.iterdir()):
        raise OutputExistsError(f"{out}: exists but is not a results folder; choose another --out")
    return is_new


@contextmanager
def replaced_results(out: Path, recipe: Mapping[str, Any], *, force: bool) -> Generator[None]:
    """Remove the results of an earlier run of the same verb once there are new ones.

    With ``force``, they are put aside first. Without it, those that a killed process put aside are
    removed once the block succeeds.

    Raises:
        CheckpointError: The file of that name is not a results file.
        OutputExistsError: Another verb began it.
    """
    path, is_done = out / FILE, False
    if force and path.exists():
        _put_aside(path, recipe)
    try:
        yield
        is_done = True
    finally:
        if not path.exists():
            _restore(out)
        elif force or is_done:
            for file in _parts(out / f"{_OLD}{FILE}"):
                file.unlink(missing_ok=True)


def _put_aside(path: Path, recipe: Mapping[str, Any]) -> None:
    """Rename results, unless they are the empty successors of others that are still there."""
    out = path.parent
    with explained(path), closing(sqlite3.connect(f"file:{path}?mode=rw", uri=True)) as old:
        found = {name for (name,) in old.execute("SELECT name FROM sqlite_master")}
        noted = "SELECT value FROM run WHERE key = 'recipe'"
        rows = old.execute(noted).fetchall() if "run" in found else []
        # A process that was killed as it began leaves a file without tables.
        if found and not {"run", "cells", "answers"} <= found:
            raise CheckpointError(
                f"{path}: is an SQLite file without results; move it away, or choose another folder"
            )
        is_empty = not found or not old.execute("SELECT 1 FROM cells LIMIT 1").fetchall()
    with suppress(ValueError, TypeError):  # a damaged note is replaced
        _require_same_verb(out, [parse_json(text) for (text,) in rows], recipe)
    if is_empty and (out / f"{_OLD}{FILE}").exists():
        _remove(path)
        return
    for file in _parts(path):
        file.rename(out / f"{_OLD}{file.name}")


def _restore(out: Path) -> None:
    """Give results that were put aside their name again: there are no others."""
    for file in reversed(_parts(out / f"{_OLD}{FILE}")):
        file.rename(out / file.name.removeprefix(_OLD))


def _remove(path: Path) -> None:
    for file in reversed(_parts(path)):
        file.unlink()


def _parts(path: Path) -> list[Path]:
    """Return those files of a database that exist: itself, the log of its writes, and its index.

    The file itself is the first to be put aside and the last to return or to go: a log that lies
    where the file is missing then never belongs to another one.
    """
    names = (path.name, f"{path.name}-wal", f"{path.name}-shm")
    return [file for file in map(path.with_name, names) if file.exists()]


def _require_same_verb(out: Path, noted: Sequence[Any], recipe: Mapping[str, Any]) -> None:
    """Refuse to put the results of one verb in the place of another's.

    Args:
        out: The folder of a run.
        noted: The recipe that the run has noted, if there is one.
        recipe: The recipe that is to be run.

    Raises:
        OutputExistsError: It is that of another verb.
    """
    begun = [verb_of(one) for one in noted if isinstance(one, dict)]
    if begun and begun != [verb_of(recipe)]:
        raise OutputExistsError(
            f"{out}: holds the results of `pvec {begun[0]}`, which no other command replaces; "
            "choose another --out"
        )


def verb_of(recipe: Mapping[str, Any]) -> str:
    """Return the verb that carries out a recipe."""
    return "eval" if "model" in recipe else "compare" if "points" in recipe else "sweep"


def remove_if_empty(store: Store, out: Path, *, is_new: bool) -> None:
    """Remove a store in which nothing was measured, and its folder if this run created it."""
    if store.is_empty():
        store.connection.close()
        _remove(out / FILE)
        if is_new and not any(out.iterdir()):
            out.rmdir()
