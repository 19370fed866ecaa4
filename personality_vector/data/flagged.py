"""Screened chats on disk: each with its projection difference, as data that training reads."""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from personality_vector.data.chats import DataSpec, read_chats
from personality_vector.data.rows import first_row, raw_rows
from personality_vector.data.statements import Part, select_statements
from personality_vector.errors import DataError, OutputExistsError, RecipeError, require_new
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
from personality_vector.subject import Chat

KIND = "screen"
"""Of the manifest."""
_GROUPS = ("high", "random", "low")
_LABELS = ("trait", "level", "part", "id")
_BIG5CHAT = {"train_input", "train_output"}
_OF_MESSAGE = ("role", "content")


class Labelled(NamedTuple):
    """A chat, and what its row says of it: ``trait``, ``level``, ``part`` and ``id``, if it does.

    Without them, training on screened chats of two poles would learn both ends for any pole.
    """

    chat: Chat
    labels: Mapping[str, str | int]


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


def read_labelled(spec: DataSpec) -> list[Labelled]:
    """Return the chats that ``spec`` selects, in file order, each with the labels of its row.

    A statement is of a part even where its row names none. Of two rows with the same chat, the
    labels are those of the first.

    Raises:
        DataError: The source cannot be read, or nothing is selected.
    """
    chats, rows = read_chats(spec), list(_rows(spec))
    if not any(labels for _, labels in rows):
        return [Labelled(chat, {}) for chat in chats]
    left, found = iter(rows), []
    for chat in chats:
        said = [message["content"] for message in chat]
        labels = next((own for texts, own in left if said[-len(texts) :] == texts), None)
        if labels is None:  # it was changed meanwhile
            raise DataError(f"{spec.source}: has no row of the chat that ends {said[-1][:60]!r}")
        found.append(Labelled(chat, labels))
    return found


def _rows(spec: DataSpec) -> Iterator[tuple[list[str], dict[str, str | int]]]:
    """Yield the texts that the chat of each row ends with, and its labels, in file order."""
    shape = _format_of(spec)
    if shape == "statements":
        yield from _statements(spec)
        return
    for row in raw_rows(spec.origin).values():
        labels = {key: row[key] for key in _LABELS if isinstance(row.get(key), str | int)}
        labels = {key: value for key, value in labels.items() if value != ""}
        of = [str(labels.get(key, "")).strip().lower() for key in ("trait", "level")]
        if all(of):
            labels |= zip(("trait", "level"), of, strict=True)
        is_of_pole = spec.pole is None or not all(of) or ":".join(of) == str(spec.pole)
        is_of_part = shape != "chats" or spec.part in ("all", labels.get("part", spec.part))
        if is_of_pole and is_of_part:
            yield [text for key in _keys(row, shape) for text in _texts(key, row.get(key))], labels


def _statements(spec: DataSpec) -> Iterator[tuple[list[str], dict[str, str | int]]]:
    found, _ = select_statements(
        spec.origin,
        trait=spec.pole.trait if spec.pole else None,
        level=spec.pole.level if spec.pole else None,
        part=None if spec.part == "all" else cast("Part", spec.part),
        held_out=spec.held_out,
    )
    for one in found:
        yield [one.text], {"trait": one.trait, "level": one.level, "part": str(one.part)}


def _format_of(spec: DataSpec) -> str:
    origin = spec.origin
    if spec.format or (isinstance(origin, Path) and origin.is_dir()):
        return spec.format or "statements"
    _, row = first_row(origin) or ("", {})
    return "statements" if "statement" in row else "big5chat" if _BIG5CHAT & row.keys() else "chats"


def _keys(row: Mapping[str, Any], shape: str) -> tuple[str, ...]:
    """Return the columns of a row that its chat is in."""
    if shape == "big5chat":
        return ("train_input", "train_output")
    is_whole = "completion" not in row and "messages" in row
    return ("messages",) if is_whole else ("prompt", "completion")


def _texts(key: str, cell: Any) -> list[str]:
    """Return the texts of the messages of a cell: a list, a list as JSON, or a plain text."""
    if isinstance(cell, str):
        listed: Any = None
        with suppress(ValueError):
            listed = parse_json(cell)
        is_listed = bool(listed) and isinstance(listed, list) and isinstance(listed[0], dict)
        # The first key tells messages from a text that happens to be JSON.
        if not is_listed or (key != "messages" and next(iter(listed[0]), "") not in _OF_MESSAGE):
            return [cell]
        cell = listed
    contents = [message.get("content") for message in cell or ()]
    return [
        "".join(part.get("text", "") for part in content) if isinstance(content, list) else content
        for content in contents
    ]


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
