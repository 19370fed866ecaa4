"""Reading a range of a file, and what a file looks like from outside: its stamp."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from personality_vector.errors import CheckpointError

_BUFFER = 1 << 19
"""Bytes read at a time. They are still in a core's own cache when they are looked at: half of this
or twice as much is slower by a tenth, 16 MiB by a quarter."""

_here = threading.local()


class Stamp(NamedTuple):
    """What changes when a file is written to or replaced."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int

    @classmethod
    def of(cls, descriptor: int) -> "Stamp":
        """Return the stamp of an open file."""
        status = os.fstat(descriptor)
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    @property
    def content(self) -> tuple[int, int]:
        """The part that changes with the content alone, and not with a name or a mode."""
        return self.size, self.mtime_ns


def read(descriptor: int, file: Path, start: int, end: int) -> Iterator[memoryview]:
    """Yield the bytes ``start .. end`` of an open file, a piece at a time.

    By ``pread`` rather than a map, under which a file that is cut short kills the process. A piece
    lies in a buffer that the thread uses again: it is gone when the next one is asked for.

    Raises:
        CheckpointError: The file ends before ``end``.
    """
    if not hasattr(_here, "buffer"):
        _here.buffer = memoryview(bytearray(_BUFFER))
    while start < end:
        count = os.preadv(descriptor, [_here.buffer[: end - start]], start)
        if count == 0:
            raise CheckpointError(f"{file}: ends at byte {start} of {end}; was it changed?")
        yield _here.buffer[:count]
        start += count
