"""Reading small files of unknown origin: regular, of bounded size, and not through stray links."""

import errno
import io
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MOST_BYTES = 100_000_000
_MOST_CONTAINERS, _MOST_VALUES = 1_000_000, 4_000_000
"""Numbers of lists and tables, and of values, in a JSON text: with these, reading one takes less
than 500 MB and 5 seconds."""
_MOST_LEVELS = 100
"""What is nested more deeply could exhaust the stack of whoever walks through it later."""


def read_bytes(file: Path, most: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file.

    Raises:
        OSError: It cannot be read, has more than ``most`` bytes, or is a pipe or a device, which
            could block or never end.
    """
    with open_regular(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > most:
            raise OSError(errno.EFBIG, f"it has {size:,} bytes, at most {most:,} are read")
        return stream.readall()[:most]


def open_regular(file: Path) -> io.FileIO:
    """Open a file for reading, without a buffer.

    Raises:
        OSError: It cannot be opened, or is a pipe, a device or a directory.
    """
    # Without O_NONBLOCK, opening a pipe waits for somebody who writes into it.
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return io.FileIO(descriptor)
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    raise OSError(errno.EINVAL, "it is a pipe or a device, not a file")


def read_text(file: Path, most: int = MOST_BYTES) -> str:
    """Return the content of a text file in UTF-8, with or without a byte order mark.

    Raises:
        OSError: See :func:`read_bytes`.
        UnicodeDecodeError: It is not UTF-8.
    """
    text = read_bytes(file, most).decode("utf-8-sig")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def parse_json(text: str | bytes, **how: Any) -> Any:
    """Return what a JSON text holds.

    Args:
        text: The text; bytes are UTF-8.
        how: Options of ``json.loads``.

    Raises:
        ValueError: It is not JSON, is nested too deeply, or has too many parts.
    """
    marks = ("{", "[", ",") if isinstance(text, str) else (b"{", b"[", b",")
    counts = [text.count(mark) for mark in marks]  # type: ignore[arg-type]
    if sum(counts[:2]) > _MOST_CONTAINERS or counts[2] > _MOST_VALUES:
        raise ValueError("it has too many parts")
    try:
        found = json.loads(text, **how)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if sum(counts[:2]) > _MOST_LEVELS:  # otherwise it cannot be that deep
        level = [found]
        for _ in range(_MOST_LEVELS):
            level = [part for outer in level for part in _parts(outer)]
        if level:
            raise ValueError(f"it is nested too deeply: at most {_MOST_LEVELS} levels are read")
    return found


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def is_stray(file: Path, folder: Path | None = None) -> bool:
    """Return whether a link leads out of a folder, other than into the blobs of its Hub repository.

    Args:
        file: A file in the folder, or in a folder below it.
        folder: The folder, by default that of the file.
    """
    home, real = (folder or file.parent).resolve(), file.resolve()
    # The Hub's cache: models--OWNER--NAME/snapshots/REVISION/file links to ../../blobs/HASH.
    repository = home.parent.parent if home.parent.name == "snapshots" else home.parent
    blobs = (repository / "blobs").resolve()
    return not (real.is_relative_to(home) or real.is_relative_to(blobs))
