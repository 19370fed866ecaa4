"""One progress bar for the outer loops: train, merge, administer, sweep."""

import sys
from collections.abc import Generator, Iterable, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

_silenced = False
_drawing = False


def silence() -> None:
    """Draw no bar from now on in this process: ``--quiet``."""
    global _silenced
    _silenced = True


def progress(items: Iterable[T], label: str) -> Generator[T]:
    """Yield ``items`` while a bar on stderr shows how far we are.

    Silent without a terminal, after :func:`silence`, and inside another bar.
    """
    global _drawing
    if _silenced or _drawing or not sys.stderr.isatty():
        yield from items
        return
    _drawing = True
    total = len(items) if isinstance(items, Sized) else None
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total)
            for item in items:
                yield item
                bar.advance(task)
    finally:
        _drawing = False
