"""Reading ranges of files, and stamps that show whether a file has changed."""

import contextlib
import fcntl
import mmap
import os
import signal
import threading
from collections.abc import Generator, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from personality_vector.errors import CheckpointError

_BUFFER = 1 << 19
"""Number of bytes copied at a time. They are still in a core's own cache when they are hashed: half
or twice as many bytes are slower by a tenth, 16 MiB by a quarter."""

MAPPED = 1 << 25
"""Number of bytes mapped at a time; cores wait for each other while they change what is mapped."""

_WORTH_MAPPING = 1 << 20
_POPULATE_READ = 22
"""MADV_POPULATE_READ of Linux 5.14: reads a map in now, and fails if the disk does."""

_here = threading.local()


class Stamp(NamedTuple):
    """Changes when a file is written to or replaced."""

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


def read(descriptor: int, file: Path, *cuts: int) -> Iterator[memoryview]:
    """Yield the bytes from the first cut to the last, in pieces that lie between two cuts.

    A piece is gone when the next one is asked for. Inside :func:`leased` nothing is copied, which
    takes half the time; elsewhere a map would kill the process if the file were cut short.

    Raises:
        CheckpointError: The file ends before the last cut.
    """
    for start in range(cuts[0], cuts[-1], MAPPED):
        stop = min(cuts[-1], start + MAPPED)
        inside = pairwise([start, *(cut for cut in cuts if start < cut < stop), stop])
        whole = _map(descriptor, start, stop)
        if whole is None:
            for places in inside:
                yield from _copied(descriptor, file, *places)
        else:
            with whole, memoryview(whole) as view, view[start - stop :] as mapped:
                for begin, end in inside:
                    with mapped[begin - start : end - start] as piece:
                        yield piece


@contextlib.contextmanager
def leased(descriptors: Iterable[int]) -> Generator[None]:
    """Hold read leases on open files for a while, of those that grant one.

    Whoever wants to write to such a file waits until the lease is given up, so that maps of it are
    safe. There are none on another system than Linux, on most network file systems, for files of
    other users, and for a file that somebody has open for writing.
    """
    held = []
    for descriptor in descriptors:
        with contextlib.suppress(OSError, AttributeError):
            # By default the signal that somebody waits would end the process; this one is ignored.
            fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
            held.append(descriptor)
    try:
        yield
    finally:
        for descriptor in held:
            with contextlib.suppress(OSError):
                fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def _is_leased(descriptor: int) -> bool:
    """Return whether there is a lease that nobody waits for; others are broken after 45 s."""
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GETLEASE) == fcntl.F_RDLCK
    except (OSError, AttributeError):  # the latter on another system
        return False


def _map(descriptor: int, start: int, stop: int) -> mmap.mmap | None:
    """Return a map that ends at ``stop`` and begins at ``start`` or a little before, if it is safe.

    Whatever is wrong is said by the copying read that takes its place.
    """
    if stop - start < _WORTH_MAPPING or not _is_leased(descriptor):
        return None
    begin = start - start % mmap.ALLOCATIONGRANULARITY
    try:
        whole = mmap.mmap(descriptor, stop - begin, prot=mmap.PROT_READ, offset=begin)
        whole.madvise(_POPULATE_READ)
    except (OSError, ValueError):
        return None
    return whole


def _copied(descriptor: int, file: Path, start: int, end: int) -> Iterator[memoryview]:
    if not hasattr(_here, "buffer"):
        _here.buffer = memoryview(bytearray(_BUFFER))
    while start < end:
        count = os.preadv(descriptor, [_here.buffer[: end - start]], start)
        if count == 0:
            raise CheckpointError(f"{file}: ends at byte {start} of {end}; was it changed?")
        yield _here.buffer[:count]
        start += count
