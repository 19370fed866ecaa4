"""What is on the disk after a disturbance, and which laws it breaks."""

import contextlib
import json
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, deserialize

RESULTS, _OLD = "results.sqlite", ".old-"
Snapshot = dict[str, bytes]
"""Path to content; the name of a folder ends with a slash."""

Rows = dict[str, set[tuple[Any, ...]]]
_CELL = "c.base, c.intervention, c.strength, c.measure, c.seed"
_ROWS = {
    "cells": f"SELECT {_CELL} FROM cells c",
    "readings": f"SELECT {_CELL}, r.measure, trait, value, low, high, n, unscored, unit "
    "FROM readings r JOIN cells c ON r.cell = c.id",
    "answers": f"SELECT {_CELL}, item, sample, question, reply, traits, tokens_in, tokens_out "
    "FROM answers a JOIN cells c ON a.cell = c.id",
    "scores": f"SELECT {_CELL}, item, sample, judge, trait, value, reason "
    "FROM scores s JOIN answers a ON s.answer = a.id JOIN cells c ON a.cell = c.id",
}
"""What a run has measured, without numbers of rows and times."""

NOTHING: Rows = {name: set() for name in _ROWS}
_PLAN = {
    "run": "SELECT key, value FROM run WHERE key != 'digest'",  # which covers times
    "planned": "SELECT * FROM planned",
    "judged": "SELECT * FROM judged",
}


def rows_of(file: Path, queries: Mapping[str, str] = _ROWS) -> Rows:
    """Return what a file of results holds; it is read from a copy, since reading recovers it."""
    if not file.exists():
        return {name: set() for name in queries}
    with tempfile.TemporaryDirectory() as folder:
        for part in (file, file.with_name(f"{file.name}-wal")):
            if part.exists():
                shutil.copy(part, folder)
        with contextlib.closing(sqlite3.connect(Path(folder) / file.name)) as opened:
            if opened.execute("PRAGMA integrity_check").fetchall() != [("ok",)]:
                raise RuntimeError(f"{file}: is damaged")
            tables = {name for (name,) in opened.execute("SELECT name FROM sqlite_master")}
            return {
                name: set(opened.execute(query).fetchall()) if name in tables else set()
                for name, query in queries.items()
            }


def finished_cells(folder: Path) -> set[tuple[Any, ...]]:
    """Return the keys of all cells that runs below a folder have finished."""
    return {row for file in folder.rglob(RESULTS) for row in rows_of(file)["cells"]}


def content_of(file: Path) -> bytes:
    """Return what a file holds, without what differs between two runs of one command."""
    if file.name == RESULTS:
        found = rows_of(file, _ROWS | _PLAN)
        return json.dumps({name: sorted(map(repr, rows)) for name, rows in found.items()}).encode()
    if file.name.startswith(RESULTS):  # a log of writes, which is read with the file
        return b""
    data = file.read_bytes()
    if file.name == "MANIFEST.json" and RESULTS.encode() in data:
        with contextlib.suppress(ValueError):
            manifest = json.loads(data)
            manifest["files"].pop(RESULTS, None)  # free pages of a database come and go
            return json.dumps(manifest).encode()
    return data


def snapshot(folder: Path) -> Snapshot:
    """Return everything below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        found |= {f"{name}/": b""} if path.is_dir() else {name: content_of(path)}
    return found


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


@dataclass
class State:
    """What may be there: what was before, what an undisturbed command leaves, and its stages.

    Attributes:
        old: Before the command.
        new: After it.
        stages: File to the contents that it has had for a while, each written whole.
        old_rows: What runs had measured before.
        new_rows: What they have measured afterwards.
        seconds: How long it takes.
        discards: Whether the command replaces what a run has measured.
    """

    old: Snapshot
    new: Snapshot
    stages: dict[str, set[bytes]] = field(default_factory=dict)
    old_rows: dict[str, Rows] = field(default_factory=dict)
    new_rows: dict[str, Rows] = field(default_factory=dict)
    seconds: float = 0.0
    discards: bool = False

    def name(self, found: Snapshot) -> str:
        """Return what is there: ``absent``, ``old``, ``new``, or what is to be ``resumed``."""
        seen = {name: content for name, content in found.items() if not _is_hidden(name)}
        if seen == self.new:
            return "new"
        return "resumed" if seen != self.old else "old" if self.old else "absent"

    def broken(self, folder: Path) -> Iterator[str]:
        """Yield every law that a folder breaks after a disturbance."""
        found = snapshot(folder)
        for top in self._outputs(found):
            if f"{top}/{RESULTS}" in self.new:
                yield from self._run_broken(folder, top, found)
                continue
            seen, old, new = (_below(top, each) for each in (found, self.old, self.new))
            stages = [{top: stage} for stage in self.stages.get(top, ())]
            if seen not in (old, new, *stages):
                differing = {
                    n for n in {*seen, *new} if seen.get(n) not in (old.get(n), new.get(n))
                }
                yield f"{top}: is neither old nor new: {sorted(differing)[:3] or sorted(seen)[:9]}"
        yield from self._impostors(found)

    def _outputs(self, found: Snapshot) -> set[str]:
        """Return the outputs that are looked at: files, folders, and the folders in those of many.

        A folder of many outputs has no manifest of its own, and those in it have one.
        """
        known = {**self.old, **self.new}
        within = {n.removesuffix("/MANIFEST.json") for n in known if n.endswith("/MANIFEST.json")}
        many = {top for top in (one.split("/")[0] for one in within) if top not in within}
        names = [name.rstrip("/") for name in (*found, *self.old) if not _is_hidden(name)]
        tops = {name.split("/")[0] for name in names}
        inner = {one for one in within if one.split("/")[0] in many}
        stray = {n for n in names if n.split("/")[0] in many and f"{n}/" not in known}
        return (tops - many) | inner | {n for n in stray if not any(_in(n, one) for one in inner)}

    def _run_broken(self, folder: Path, top: str, found: Snapshot) -> Iterator[str]:
        """Yield what is wrong with a run: a half file, or a row that is mixed, lost or unknown."""
        for name, content in _below(top, found).items():
            allowed = {self.old.get(name), self.new.get(name)} | self.stages.get(name, set())
            is_file = not (name.endswith("/") or RESULTS in name or _is_hidden(name))
            if is_file and content not in allowed:
                yield f"{name}: is half-written ({len(content)} bytes)"
        file = folder / top / RESULTS
        rows, old, new = rows_of(file), self.old_rows.get(top, NOTHING), self.new_rows[top]
        kept = rows_of(file.with_name(f"{_OLD}{RESULTS}"))
        is_begun = self.discards and rows["cells"] - old["cells"]
        for table, seen in rows.items():
            if unknown := seen - old[table] - new[table]:
                yield f"{file.name}: {table} holds {min(map(repr, unknown)):.80}"
            if (lost := old[table] - seen - kept[table]) and not is_begun:
                yield f"{file.name}: {len(lost)} {table} are lost"

    def _impostors(self, found: Snapshot) -> Iterator[str]:
        """Yield the folders that a loader would take for a model, and whose weights are neither.

        Loaders want a config, and the weights in one file or all that an index lists.
        """
        wholes = [set(each.values()) for each in (self.old, self.new)]
        for config in (name for name in found if name.endswith("/config.json")):
            if ".training/" in config:
                continue  # a checkpoint of a training that was interrupted
            place = config.removesuffix("config.json")
            index = json.loads(found.get(f"{place}model.safetensors.index.json") or b"{}")
            wanted = set(index.get("weight_map", {}).values()) or {"model.safetensors"}
            weights = {found.get(f"{place}{name}") for name in wanted}
            is_model = None not in weights and all(map(_is_whole, weights))
            if is_model and not any(weights <= whole for whole in wholes):
                yield f"{place}: looks like a model, but its weights are neither old nor new"


def _is_whole(weights: bytes | None) -> bool:
    """Return whether a file of weights can be opened."""
    try:
        return bool(deserialize(weights or b""))
    except SafetensorError:
        return False


def _in(name: str, folder: str) -> bool:
    return name == folder or name.startswith(f"{folder}/")


def _below(top: str, found: Snapshot) -> Snapshot:
    return {name: content for name, content in found.items() if _in(name, top)}
