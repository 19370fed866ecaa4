"""One progress bar for the outer loops: train, merge, administer, sweep."""

import sys
from collections.abc import Callable, Generator, Iterable, Sized
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

T = TypeVar("T")

_silenced = False
_drawing = False


def silence() -> None:
    """Draw no bar from now on in this process: ``--quiet``."""
    global _silenced
    _silenced = True


def progress(
    items: Iterable[T], label: str, size: Callable[[T], int] | None = None
) -> Generator[T]:
    """Yield ``items`` while a bar on stderr shows how far we are.

    Silent without a terminal, after :func:`silence`, and inside another bar.

    Args:
        items: What is worked through; the total is known if they have a length.
        label: Name of the work.
        size: Bytes of an item. The bar then counts bytes, and shows bytes per second.
    """
    global _drawing
    if _silenced or _drawing or not sys.stderr.isatty():
        yield from items
        return
    _drawing = True
    step = size or (lambda _: 1)
    total = sum(map(step, items)) if isinstance(items, Sized) else None
    counts = (DownloadColumn(), TransferSpeedColumn()) if size else (MofNCompleteColumn(),)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        *counts,
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    try:
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(label, total=total)
            for item in items:
                yield item
                bar.advance(task, step(item))
    finally:
        _drawing = False
