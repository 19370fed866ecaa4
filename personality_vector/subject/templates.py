"""Trying a chat template in a process of its own: a template is a program that a model brings.

It cannot reach files or the network, since it is rendered in a sandbox, but it can loop for ever or
fill the memory.
"""

import os
import resource
import signal
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from personality_vector.errors import DataError

_SECONDS, _BYTES = 5, 1 << 29
"""What rendering one chat may take, beyond what this process takes already."""
_DONE, _FAILED, _FULL = 0, 1, 2
_WAIT = 0.002


def require_bounded(render: Callable[[], str]) -> None:
    """Render a chat in a forked process, within bounds; whatever else is wrong is seen later.

    Raises:
        DataError: It takes more than 5 seconds or 512 MB.
    """
    with warnings.catch_warnings():
        # The other threads of this process are not needed to render.
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        _render_and_exit(render)
    timer = threading.Timer(2 * _SECONDS, os.kill, (child, signal.SIGKILL))
    timer.start()
    try:
        status = _ended(child)
    finally:
        timer.cancel()
    if status < 0 or status == _FULL:
        what = "memory" if status == _FULL else "time"
        raise DataError(
            f"the chat template takes too much {what} (more than {_SECONDS} s or "
            f"{_BYTES >> 20} MB for one chat); choose another template"
        )


def _ended(child: int) -> int:
    """Wait for a process and return its exit code, or minus the signal that ended it."""
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(_WAIT)


def _render_and_exit(render: Callable[[], str]) -> None:
    code = _FAILED
    with suppress(BaseException):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
        with suppress(OSError, ValueError):  # on another system than Linux, time alone is bounded
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            most = pages * resource.getpagesize() + _BYTES
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
        try:
            render()
            code = _DONE
        except MemoryError:
            code = _FULL
    os._exit(code)
