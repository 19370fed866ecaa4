"""The moments of a command: every operation that changes a file can be the last one, or fail."""

import builtins
import contextlib
import errno
import io
import mmap
import os
import signal
import sqlite3
from collections.abc import Callable, Generator
from typing import Any

CHANGING = (
    *("open", "pwrite", "write", "fsync", "truncate", "ftruncate", "mkdir", "rename", "replace"),
    *("unlink", "remove", "rmdir", "chmod", "link", "symlink", "sendfile", "copy_file_range"),
)
FILLING = {
    *("pwrite", "write", "truncate", "ftruncate", "mkdir", "sendfile", "copy_file_range"),
    *("create", "fill", "serialize_file", "COMMIT"),
}
"""What needs space on the disk."""

_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_SQL = {errno.ENOSPC: sqlite3.SQLITE_FULL, errno.EIO: sqlite3.SQLITE_IOERR}

Arguments = tuple[Any, ...]
Around = Callable[[Callable[[], Any], str, Arguments], Any]


@contextlib.contextmanager
def wrapped(around: Around) -> Generator[None]:
    """Call ``around(function, name, arguments)`` in place of all that changes files."""
    import safetensors.torch

    from personality_vector.files import directory

    places = [(os, name) for name in CHANGING if hasattr(os, name)]
    places += [(safetensors.torch, "serialize_file"), (directory, "_exchange")]
    usual = [(place, name, getattr(place, name)) for place, name in places]
    opened, connect = io.open, sqlite3.connect
    try:
        for place, name, function in usual:
            setattr(place, name, _instead(function, name, around))
        builtins.open = io.open = _opening(opened, around)
        sqlite3.connect = _connecting(connect, around)
        yield
    finally:
        builtins.open, io.open, sqlite3.connect = opened, opened, connect
        for place, name, function in usual:
            setattr(place, name, function)


def _instead(function: Callable[..., Any], name: str, around: Around) -> Callable[..., Any]:
    def call(*args: Any, **given: Any) -> Any:
        if name == "open" and not args[1] & _WRITING:
            return function(*args, **given)  # a file or folder that is only read
        return around(lambda: function(*args, **given), name, args)

    return call


def _opening(opened: Callable[..., Any], around: Around) -> Callable[..., Any]:
    """Return what opens a file; the first time that something is written to it is a moment too."""

    def call(file: Any, mode: str = "r", *args: Any, **given: Any) -> Any:
        if not set(mode) & set("wax+"):
            return opened(file, mode, *args, **given)
        stream = around(lambda: opened(file, mode, *args, **given), "create", (file, mode))
        write, begun = stream.write, list[bool]()

        def noted(data: Any) -> Any:
            if begun or not data:
                return write(data)
            begun.append(True)
            return around(lambda: write(data), "fill", (stream, data))

        stream.write = noted
        return stream

    return call


def _connecting(connect: Callable[..., Any], around: Around) -> Callable[..., Any]:
    """Return what opens a database, of which every transaction is two moments."""

    class Connection(sqlite3.Connection):
        def execute(self, query: str, *values: Any) -> Any:
            run = super().execute
            if query.startswith(("BEGIN", "COMMIT")):
                return around(lambda: run(query, *values), query[:6].strip(), (query,))
            return run(query, *values)

    return lambda *args, **given: around(
        lambda: connect(*args, **given, factory=Connection), "connect", args
    )


class Kill:
    """Dies by SIGKILL at the ``n``-th moment; with 0 it only counts the moments.

    There is one before each operation, when half of what it would write has been written, and one
    more after a file was created, when it is still empty.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self.pwrite = os.pwrite
        self.count = mmap.mmap(-1, 8)  # shared by parent and child

    def __call__(self, run: Callable[[], Any], name: str, args: Arguments) -> Any:
        if self.passed + 1 == self.n:
            self._write_half(run, name, args)
        self._moment()
        result = run()
        if name in ("create", "open", "connect"):
            self._moment()
        return result

    @property
    def passed(self) -> int:
        """Number of moments so far."""
        return int.from_bytes(self.count[:])

    def _write_half(self, run: Callable[[], Any], name: str, args: Arguments) -> None:
        if name == "pwrite":
            descriptor, data, offset = args
            self.pwrite(descriptor, bytes(data)[: len(data) // 2], offset)
        elif name == "fill":
            stream, data = args
            stream.write(data[: len(data) // 2])
            stream.flush()
        elif name == "serialize_file":
            run()
            with io.FileIO(args[1], "r+") as file:
                file.truncate(os.fstat(file.fileno()).st_size // 2)

    def _moment(self) -> None:
        self.count[:] = (self.passed + 1).to_bytes(8)
        if self.passed == self.n:
            os.kill(os.getpid(), signal.SIGKILL)


class Fail(Kill):
    """Fails at the ``n``-th operation: once with EIO, or from there on with a full disk."""

    def __init__(self, n: int, number: int) -> None:
        super().__init__(n)
        self.number = number

    def __call__(self, run: Callable[[], Any], name: str, args: Arguments) -> Any:  # noqa: ARG002
        full = self.number == errno.ENOSPC
        fills = name in FILLING or name == "open"
        if not fills and (full or name not in ("fsync", "rename", "replace", "chmod")):
            return run()
        self.count[:] = (self.passed + 1).to_bytes(8)
        if self.n and (self.passed >= self.n if full else self.passed == self.n):
            if name != "COMMIT":
                raise OSError(self.number, os.strerror(self.number))
            error = sqlite3.OperationalError(os.strerror(self.number))
            error.sqlite_errorcode = _SQL[self.number]
            raise error
        return run()
