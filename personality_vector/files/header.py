"""The header of a safetensors file, read and checked before any data is touched.

Format: eight bytes little-endian length ``n``, ``n`` bytes of JSON, then the data
(https://huggingface.co/docs/safetensors).
"""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from personality_vector.errors import CheckpointError

WIDTHS: Mapping[str, int] = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes of one entry, by the name of its dtype in a header."""

_MOST_HEADER_BYTES = 100_000_000
_MOST_TENSORS = 200_000
PLAIN_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,300}")
"""What a tensor or a shard may be called: nothing that a path or a terminal would act on."""
_LFS_POINTER = b"version https://git-lfs"


class Stored(NamedTuple):
    """A tensor in a file: the name of its dtype, its shape, its bytes from ``start`` to ``end``."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_table(file: Path) -> dict[str, Stored]:
    """Return the tensors of a safetensors file by name.

    Raises:
        CheckpointError: The file is missing, truncated, a Git-LFS pointer, or its header is
            malformed, has duplicate or dangerous names, or does not cover the data exactly.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(8)
            length = int.from_bytes(head, "little")
            _check_length(file, size, head, length, stream.read(64))
            stream.seek(8)
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    at, table = 8 + length, _parse(file, text)
    entries = {name: _entry(file, name, row, at) for name, row in table.items()}
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].end)):
        if entry.start != at:
            raise CheckpointError(f"{file}: tensor {name} overlaps another or leaves a hole")
        at = entry.end
    if at != size:
        raise CheckpointError(f"{file}: should have {at} bytes and has {size}; is it truncated?")
    return entries


def _check_length(file: Path, size: int, head: bytes, length: int, start: bytes) -> None:
    if (head + start).startswith(_LFS_POINTER):
        raise CheckpointError(f"{file}: is a Git-LFS pointer, not weights; run `git lfs pull`")
    if size < 8 or length > min(size - 8, _MOST_HEADER_BYTES):
        raise CheckpointError(
            f"{file}: truncated or not safetensors: its header claims {length} bytes, "
            f"the file has {size}"
        )


def _parse(file: Path, text: bytes) -> dict[str, Any]:
    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            raise CheckpointError(f"{file}: its header names the same tensor twice")
        return table

    try:
        table = json.loads(text, object_pairs_hook=without_duplicates)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: its header is not JSON: {error}") from error
    if not isinstance(table, dict) or len(table) > _MOST_TENSORS:
        raise CheckpointError(f"{file}: its header is not a table of at most {_MOST_TENSORS} names")
    table.pop("__metadata__", None)
    return table


def _entry(file: Path, name: str, row: Any, data: int) -> Stored:
    if not PLAIN_NAME.fullmatch(name):
        raise CheckpointError(f"{file}: refused tensor name {name[:80]!r}")
    try:
        width, shape = WIDTHS[row["dtype"]], tuple(row["shape"])
        first, last = row["data_offsets"]
        if not all(type(number) is int and number >= 0 for number in (*shape, first, last)):
            raise ValueError("a size or offset is not a whole number")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: tensor {name}: unreadable entry: {row!r:.120}") from error
    size = width * math.prod(shape)
    if last - first != size:
        raise CheckpointError(
            f"{file}: tensor {name}: shape {list(shape)} needs {size} bytes, "
            f"the header gives {last - first}"
        )
    return Stored(row["dtype"], shape, data + first, data + last)
