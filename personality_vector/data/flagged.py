"""Screened chats on disk: each with its projection difference, as data that training reads."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from personality_vector.data.chats import Labelled
from personality_vector.errors import OutputExistsError, RecipeError, require_new
from personality_vector.files import MANIFEST, write_file
from personality_vector.files.directory import explained
from personality_vector.files.owned import (
    PARTIAL,
    beside,
    digest_in,
    manifest_of,
    require_replaceable_file,
)
from personality_vector.files.reading import parse_json, read_bytes
from personality_vector.manifest import rounded, write_manifest
from personality_vector.numeric.random import generator_for

KIND = "screen"
"""Of the manifest."""
_GROUPS = ("high", "random", "low")


class Flagged(NamedTuple):
    """A chat and what screening found.

    Attributes:
        source: The chat, which ends with the response, and its labels.
        projection: Of the response, in the unit of the activation.
        difference: From what it was compared with; NaN where there was nothing to compare.
        group: ``high``, ``middle`` or ``low`` among all; "" without a difference.
        reply: What the model itself replied, if it was asked.
    """

    source: Labelled
    projection: float
    difference: float
    group: str
    reply: str | None = None

    def to_json(self) -> str:
        """Return the row of a file, as the format ``chats`` has it; numbers have nine digits."""
        row: dict[str, Any] = {
            **self.source.labels,
            "prompt": [dict(message) for message in self.source.chat[:-1]],
            "completion": [dict(self.source.chat[-1])],
            "projection": rounded(self.projection),
            "difference": None if math.isnan(self.difference) else rounded(self.difference),
            "group": self.group,
        }
        if self.reply is not None:
            row["reply"] = self.reply
        return json.dumps(row, ensure_ascii=False, allow_nan=False)


class Chosen(NamedTuple):
    """What is written of screened chats, in their order.

    Attributes:
        kept: Those that are not dropped.
        groups: The groups ``high``, ``low`` and ``random``, of all whatever is dropped.
        dropped: How many are.
    """

    kept: list[Flagged]
    groups: dict[str, list[Flagged]]
    dropped: int


class FlaggedFile:
    """A JSONL file of screened chats, those of the groups, and a manifest that owns them.

    They are written into a hidden folder, with a manifest that lists them, and only then get their
    names: the groups, the file, the manifest. A process that is killed before leaves nothing that
    is seen, and one that is killed between leaves that folder, by which the next run knows what is
    its own and gives what is left its name, before it replaces all of it.

    Args:
        file: What all chats go into that are not dropped.
        with_groups: Whether the groups get files beside it: ``NAME.high.jsonl``, of chats with the
            highest differences, ``NAME.low.jsonl``, and ``NAME.random.jsonl``, as many of all.

    Raises:
        RecipeError: The file would not be read as JSONL, by its name.
    """

    def __init__(self, file: Path, *, with_groups: bool = False) -> None:
        if file.suffix != ".jsonl":
            raise RecipeError(f"--out {file}: name a file that ends with .jsonl")
        self._file, self._manifest = file, beside(file)
        self._of_groups = {
            name: file.with_name(f"{file.stem}.{name}{file.suffix}") for name in _GROUPS
        }
        self._groups = self._of_groups if with_groups else {}
        self._staged = file.with_name(f".{file.stem}.{KIND}{PARTIAL}")
        self._earlier: list[Path] = []

    def require_writable(self, data: Path | None, *, force: bool) -> None:
        """Refuse to write over anything but an earlier output that nobody has changed.

        What a killed run left of a first output is replaced without ``force``.

        Args:
            data: The file or folder that is read, unless it is on the Hub.
            force: Whether an earlier output may be replaced.

        Raises:
            OutputExistsError: Something else is there, or it is, or lies in, the data.
        """
        written = [*self._groups.values(), self._file, self._manifest]
        _require_apart(written, data)
        self._require_staging()
        self._earlier = self._replaceable(force=force)
        _require_apart(self._earlier, data)
        for path in self._groups.values():
            if path.exists() and path not in self._earlier:
                raise OutputExistsError(
                    f"{path}: was not written with {self._file.name}; choose another --out"
                )

    @staticmethod
    def choose(rows: Sequence[Flagged], drop_above: float | None, seed: int) -> Chosen:
        """Return what is written of all chats.

        Args:
            rows: All of them.
            drop_above: Largest difference that is kept; a chat without a difference is dropped
                too, since nothing is known of it. ``None`` drops nothing.
            seed: Of the random group.
        """
        # As the file has it: what is dropped can be read off the number that was written.
        kept = [row for row in rows if drop_above is None or rounded(row.difference) <= drop_above]
        groups = {name: [row for row in rows if row.group == name] for name in ("high", "low")}
        numbers = drawn(len(rows), len(groups["high"]), seed, "random group")
        groups["random"] = [rows[number] for number in numbers]
        return Chosen(kept, groups, len(rows) - len(kept))

    def counts(self, chosen: Chosen) -> dict[str, Any]:
        """Return how many chats are written, and how many are in each group."""
        groups = {name: len(chosen.groups[name]) for name in self._groups or ("high", "low")}
        return {"written": len(chosen.kept), "dropped": chosen.dropped, "groups": groups}

    def write(self, chosen: Chosen, content: Mapping[str, Any]) -> None:
        """Write the chats, and the manifest by which a later run may replace them.

        Files of an earlier run that this one does not write again are removed.

        Args:
            chosen: The chats.
            content: Of the manifest; JSON-like.

        Raises:
            StorageError: They cannot be written.
        """
        with explained(self._file):
            if manifest_of(self._staged):  # a killed run had begun to
                self._publish()
            self._clear()
            self._staged.mkdir(parents=True, exist_ok=True)
            try:
                for name, path in self._groups.items():
                    _write(self._staged / path.name, chosen.groups[name])
                _write(self._staged / self._file.name, chosen.kept)
                write_manifest(self._staged, KIND, content)
            except BaseException:
                self._clear()
                raise
            self._publish()

    def _publish(self) -> None:
        """Give what is staged its name; what has it already, as a killed run left it, keeps it.

        The staged manifest is removed last: until then it says what is ours.
        """
        listed = self._digests(self._staged / MANIFEST)
        for name in listed:
            if (self._staged / name).exists():
                (self._staged / name).replace(self._file.with_name(name))
        for path in self._earlier:
            if path.name not in listed:
                path.unlink(missing_ok=True)
        write_file(self._manifest, (self._staged / MANIFEST).read_bytes())
        self._clear()

    def _clear(self) -> None:
        """Remove the staged files and their folder; the manifest goes first, as it lists them."""
        if self._staged.exists():
            (self._staged / MANIFEST).unlink(missing_ok=True)
            for path in self._staged.iterdir():
                path.unlink()
            self._staged.rmdir()

    def _require_staging(self) -> None:
        """Refuse a folder of somebody else where files are staged."""
        if not os.path.lexists(self._staged):
            return
        names = {self._file.name, MANIFEST, *(path.name for path in self._of_groups.values())}
        ours = names | {f".{name}{PARTIAL}" for name in names}
        is_folder = self._staged.is_dir() and not self._staged.is_symlink()
        if not is_folder or any(path.name not in ours for path in self._staged.iterdir()):
            raise OutputExistsError(
                f"{self._staged}: was not written by this tool, which would work there; move it "
                "away, or choose another --out"
            )

    def _replaceable(self, *, force: bool) -> list[Path]:
        """Return the files of an earlier run, or of one that was killed, as it wrote them."""
        staged = self._digests(self._staged / MANIFEST)
        if not staged:
            require_new(self._file, force=force)
            require_new(self._manifest, force=force)
            is_there = self._file.exists() or self._manifest.exists()
            return require_replaceable_file(self._file, KIND) if is_there else []
        require_new(self._manifest, force=force)
        signed = self._digests(self._manifest)
        paths = {name: self._file.with_name(name) for name in staged | signed}
        for name, path in paths.items():
            known = (staged.get(name), signed.get(name))
            if path.exists() and not (path.is_file() and digest_in(path) in known):
                raise OutputExistsError(
                    f"{path}: was changed after a run that was killed had written it, so it is "
                    "never replaced; choose another --out"
                )
        return list(paths.values())

    def _digests(self, manifest: Path) -> dict[str, str]:
        """Return what a manifest lists of our files, the main one last; nothing without one."""
        try:
            found = dict(parse_json(read_bytes(manifest))["digests"])
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        ours = [*(path.name for path in self._of_groups.values()), self._file.name]
        return {name: found[name] for name in ours if name in found}


def _require_apart(paths: Sequence[Path], data: Path | None) -> None:
    """Refuse to write or remove what is, or lies in, the data."""
    source = data.resolve() if data and data.exists() else None
    for path in paths:
        if source and path.resolve().is_relative_to(source):
            where = "is" if path.resolve() == source else "would be written into"
            raise OutputExistsError(f"{path}: {where} the input; choose another --out")


def drawn(count: int, size: int, seed: int, name: str) -> list[int]:
    """Return ``size`` of ``count`` numbers, drawn without replacement, in ascending order."""
    order = torch.randperm(count, generator=generator_for(seed, f"screen {name}"))
    return sorted(order[:size].tolist())


def _write(file: Path, rows: Sequence[Flagged]) -> None:
    write_file(file, "".join(f"{row.to_json()}\n" for row in rows).encode())
