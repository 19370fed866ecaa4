"""Screened chats on disk: each with its projection difference, as data that training reads."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from personality_vector.errors import OutputExistsError, RecipeError, require_new
from personality_vector.files import write_file
from personality_vector.files.owned import require_replaceable_file
from personality_vector.manifest import rounded, write_manifest_beside
from personality_vector.numeric.random import generator_for
from personality_vector.subject import Chat

KIND = "screen"
"""Of the manifest."""
_GROUPS = ("high", "random", "low")


class Flagged(NamedTuple):
    """A chat and what screening found.

    Attributes:
        chat: It ends with the response.
        projection: Of the response, in the unit of the activation.
        difference: From what it was compared with; NaN where there was nothing to compare.
        group: ``high``, ``middle`` or ``low`` among all; "" without a difference.
        reply: What the model itself replied, if it was asked.
    """

    chat: Chat
    projection: float
    difference: float
    group: str
    reply: str | None = None

    def to_json(self) -> str:
        """Return the row of a file, as the format ``chats`` has it; numbers have nine digits."""
        row: dict[str, Any] = {
            "prompt": [dict(message) for message in self.chat[:-1]],
            "completion": [dict(self.chat[-1])],
            "projection": rounded(self.projection),
            "difference": None if math.isnan(self.difference) else rounded(self.difference),
            "group": self.group,
        }
        if self.reply is not None:
            row["reply"] = self.reply
        return json.dumps(row, ensure_ascii=False, allow_nan=False)


class FlaggedFile:
    """A JSONL file of screened chats, those of the groups, and a manifest that owns them.

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
        self._file = file
        self._groups = {
            name: file.with_name(f"{file.stem}.{name}{file.suffix}")
            for name in (_GROUPS if with_groups else ())
        }
        self._earlier: list[Path] = []

    def require_writable(self, data: Path, *, force: bool) -> None:
        """Refuse to write over anything but an earlier output that nobody has changed.

        Args:
            data: What is read.
            force: Whether an earlier output may be replaced.

        Raises:
            OutputExistsError: Something else is there, or it is the data.
        """
        if data.exists() and data.resolve() == self._file.resolve():
            raise OutputExistsError(f"{self._file}: is the input; choose another --out")
        require_new(self._file, force=force)
        if self._file.exists():
            self._earlier = require_replaceable_file(self._file, KIND)
        for path in self._groups.values():
            if path.exists() and path not in self._earlier:
                raise OutputExistsError(
                    f"{path}: was not written with {self._file.name}; choose another --out"
                )

    def write(self, rows: Sequence[Flagged], drop_above: float | None, seed: int) -> dict[str, Any]:
        """Write the chats in their order, and return how many were written and are in each group.

        Args:
            rows: All of them; the groups are of all, whatever is dropped.
            drop_above: Largest difference that is written; a chat without a difference is dropped
                too, since nothing is known of it. ``None`` drops nothing.
            seed: Of the random group.
        """
        # As the file has it: what is dropped can be read off the number that was written.
        kept = [row for row in rows if drop_above is None or rounded(row.difference) <= drop_above]
        chosen = {name: [row for row in rows if row.group == name] for name in ("high", "low")}
        numbers = drawn(len(rows), len(chosen["high"]), seed, "random group")
        chosen["random"] = [rows[number] for number in numbers]
        for name, path in self._groups.items():
            _write(path, chosen[name])
        _write(self._file, kept)
        counts = {name: len(chosen[name]) for name in self._groups or ("high", "low")}
        return {"written": len(kept), "dropped": len(rows) - len(kept), "groups": counts}

    def sign(self, content: Mapping[str, Any]) -> None:
        """Write the manifest, by which a later run may replace the files.

        Files of an earlier run that this one has not written again are removed.
        """
        others = list(self._groups.values())
        for path in self._earlier:
            if path not in (self._file, *others):
                path.unlink(missing_ok=True)
        write_manifest_beside(self._file, others, KIND, content)


def drawn(count: int, size: int, seed: int, name: str) -> list[int]:
    """Return ``size`` of ``count`` numbers, drawn without replacement, in ascending order."""
    order = torch.randperm(count, generator=generator_for(seed, f"screen {name}"))
    return sorted(order[:size].tolist())


def _write(file: Path, rows: Sequence[Flagged]) -> None:
    write_file(file, "".join(f"{row.to_json()}\n" for row in rows).encode())
