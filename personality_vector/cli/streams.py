"""Standard output and error that may be closed, full, or unable to write every character."""

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

from personality_vector.errors import redacted


class Stream:
    """A text stream that remembers that it failed instead of raising.

    By the time a result is printed, the work is done and on disk; that nobody can read what is
    printed must not look as if the work had failed.

    Args:
        stream: The stream.
        edit: Changes every text that is written.
    """

    def __init__(self, stream: Any, edit: Callable[[str], str] = str) -> None:
        self._stream = stream
        self._edit = edit
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Write text, unless the stream has failed."""
        if not isinstance(text, str):  # click tries to find out whether a stream takes bytes
            raise TypeError("this stream takes text")
        if self.failure is None:
            with self._remembered():
                self._stream.write(self._edit(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream, unless it has failed."""
        if self.failure is None:
            with self._remembered():
                self._stream.flush()

    @contextlib.contextmanager
    def _remembered(self) -> Any:
        try:
            yield
        except OSError as error:
            self.failure = error
            # What is still in the buffer has to go somewhere when the interpreter ends.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def prepare() -> None:
    """Make standard output and error fit for anything that happens to them."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # Closed: the next file that is opened would become standard output.
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            stream = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115  (never closed)
        if hasattr(stream, "reconfigure"):
            # A name from a model may have characters that a terminal's encoding lacks.
            stream.reconfigure(errors="backslashreplace")
        if not isinstance(stream, Stream):
            setattr(sys, name, Stream(stream, redacted if name == "stderr" else str))


def failure_of_stdout() -> OSError | None:
    """Flush both streams, and return why what was printed may be lost, if it may."""
    sys.stdout.flush()
    sys.stderr.flush()
    return getattr(sys.stdout, "failure", None)
