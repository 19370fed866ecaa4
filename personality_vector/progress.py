"""Progress of the outer loops: a bar on a terminal, a line a minute in a log."""

import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sized
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

_MINUTE = 60.0
_loops: "list[_Loop]" = []
"""The loops that are running, outermost first."""

_silenced = False
_last_line = 0.0


@dataclass(slots=True)
class _Loop:
    """A loop that is running: how much of it is done, and of how much, if that is known."""

    label: str
    total: int | None
    unit: str
    started: float
    done: int = 0

    def __str__(self) -> str:
        done, total = (
            tqdm.format_sizeof(count, "B") if self.unit and count is not None else count
            for count in (self.done, self.total)
        )
        return f"{self.label}: {done}{'' if total is None else f' of {total}'}"


def silence() -> None:
    """Show no progress from now on in this process: ``--quiet``."""
    global _silenced
    _silenced = True


def is_silent() -> bool:
    """Return whether :func:`silence` was called."""
    return _silenced


def progress(
    items: Iterable[T], label: str, size: Callable[[T], int] | None = None
) -> Generator[T]:
    """Yield ``items`` and show on stderr how many are done, how fast, and when it will end.

    A terminal gets a bar, of the outermost loop only. Anything else, such as the log of a job,
    gets at most one line a minute, which names the loops inside as well. :func:`silence` ends both.
    A thread in the background shows nothing.

    Args:
        items: What to work through; the end can be foretold if they have a length.
        label: Name of the work.
        size: Bytes of an item, to count bytes instead of items.
    """
    if threading.current_thread() is not threading.main_thread():
        yield from items  # the loops of two threads are not inside each other
        return
    step, unit = (size, "B") if size else (lambda _: 1, "")
    total = None
    if isinstance(items, Sized):
        total = sum(map(size, items)) if size else len(items)
    loop = _Loop(label, total, unit, time.monotonic())
    is_terminal = sys.stderr.isatty()
    hidden = _silenced or bool(_loops) or not is_terminal
    _loops.append(loop)
    try:
        with tqdm(
            total=total,
            desc=label,
            unit=unit or " items",
            unit_scale=bool(size),
            leave=False,
            disable=hidden,
            file=sys.stderr,
        ) as bar:
            for item in items:
                yield item
                loop.done += step(item)
                bar.update(step(item))
                if not (is_terminal or _silenced):
                    _log()
    finally:
        _loops.remove(loop)


def _log() -> None:
    """Write a line, unless there was one within the last minute."""
    global _last_line
    now = time.monotonic()
    if now - max(_last_line, _loops[0].started) < _MINUTE:
        return
    _last_line, share = now, 0.0
    for loop in reversed(_loops):
        share = (loop.done + share) / loop.total if loop.total else 0.0
    left = ""
    if share > 0:
        rest = timedelta(seconds=round((now - _loops[0].started) * (1 / share - 1)))
        left = f"; {rest} left, until {datetime.now() + rest:%a %H:%M}"
    sys.stderr.write(f"{', '.join(map(str, _loops))}{left}\n")
    sys.stderr.flush()
