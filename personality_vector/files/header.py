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
from personality_vector.files.reading import is_stray, parse_json

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

_MOST_TENSORS = 200_000
PLAIN_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,300}")
"""What a tensor or a shard may be called: nothing that a path or a terminal would act on."""
_MINUS_ZERO = re.compile(rb"[\s\[:,]-0[\s\],}]")
_LFS_POINTER = b"version https://git-lfs"
_QUANTISED = ("F8_", "F6_", "F4")
_MOST_TEXT = 50_000_000
_LARGEST = 2**63 - 1
UNQUANTISED = (
    "such weights are codes and not numbers that can be added to; take the checkpoint that it was "
    "quantised from, or save a copy in bfloat16 (`model.dequantize()` of transformers)"
)
"""What to do about a quantised checkpoint."""


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
        if is_stray(file):
            raise CheckpointError(f"{file}: is a link out of its folder; put the file itself there")
        if not file.is_file() and file.exists():
            raise CheckpointError(f"{file}: is not a file")
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


def require_no_pointer(file: Path, start: bytes) -> None:
    """Refuse a file that Git LFS has not replaced by the weights.

    Args:
        file: The file, for the message.
        start: Its first bytes.

    Raises:
        CheckpointError: It is a pointer.
    """
    if start.startswith(_LFS_POINTER):
        raise CheckpointError(
            f"{file}: is a Git-LFS pointer, not the file itself; run `git lfs pull`"
        )


def _check_length(file: Path, size: int, head: bytes, length: int, start: bytes) -> None:
    require_no_pointer(file, head + start)
    if _MOST_TEXT < length <= size - 8:
        raise CheckpointError(f"{file}: its header claims {length} bytes, more than {_MOST_TEXT}")
    if size < 8 or length > size - 8:
        raise CheckpointError(
            f"{file}: truncated or not safetensors: its header claims {length} bytes, "
            f"the file has {size}"
        )


def _parse(file: Path, text: bytes) -> dict[str, Any]:
    try:
        table = _json(text)
    except ValueError as error:
        raise CheckpointError(f"{file}: its header is not JSON: {error}") from error
    if not isinstance(table, dict) or len(table) > _MOST_TENSORS:
        raise CheckpointError(f"{file}: its header is not a table of at most {_MOST_TENSORS} names")
    notes = table.pop("__metadata__", None)
    texts = notes.values() if isinstance(notes, dict) else [] if notes is None else [notes, None]
    if not all(isinstance(text, str) for text in texts):
        raise CheckpointError(f"{file}: its __metadata__ is not a table of texts")
    return table


def _json(text: bytes) -> Any:
    """Return what a header holds, if safetensors reads it and no name is in it twice."""

    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            raise ValueError("it names the same tensor twice")
        return table

    if not text.startswith(b"{"):
        raise ValueError("it does not begin with {")
    if _MINUS_ZERO.search(text):
        raise ValueError("it holds the number -0, which safetensors does not read")
    how: dict[str, Any] = {"object_pairs_hook": without_duplicates}
    table = parse_json(text.decode(), parse_constant=_refuse_constant, **how)
    if b"\\u" in text:
        json.dumps(table, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    return table


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}")


def _entry(file: Path, name: str, row: Any, data: int) -> Stored:
    if not PLAIN_NAME.fullmatch(name):
        raise CheckpointError(f"{file}: refused tensor name {name[:80]!r}")
    try:
        if str(row["dtype"]).startswith(_QUANTISED):
            raise CheckpointError(
                f"{file}: tensor {name}: is quantised ({row['dtype']}); {UNQUANTISED}"
            )
        width, shape = WIDTHS[row["dtype"]], tuple(row["shape"])
        first, last = row["data_offsets"]
        if not (isinstance(row["shape"], list) and isinstance(row["data_offsets"], list)):
            raise ValueError("a shape or offsets are not a list")
        numbers = (*shape, first, last)
        if not all(type(number) is int and 0 <= number <= _LARGEST for number in numbers):
            raise ValueError("a size or offset is not a whole number")
        # A dimension of 0 makes the product 0, after it has overflowed in other readers.
        if math.prod(filter(None, shape)) > _LARGEST // width:
            raise ValueError("the shape is too large")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: tensor {name}: unreadable entry: {row!r:.120}") from error
    size = width * math.prod(shape)
    if last - first != size:
        raise CheckpointError(
            f"{file}: tensor {name}: shape {list(shape)} needs {size} bytes, "
            f"the header gives {last - first}"
        )
    return Stored(row["dtype"], shape, data + first, data + last)
