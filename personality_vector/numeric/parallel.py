"""Large work in pieces on all cores, by threads, since every inner loop releases the GIL."""

import os
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from personality_vector.errors import RecipeError

T = TypeVar("T")
R = TypeVar("R")

_here = threading.local()
_PIECE = 1 << 22


def pieces(count: int) -> Iterator[slice]:
    """Yield slices that cover ``count`` entries, four million at a time.

    A whole tensor in float64, or as random bits, would take many times its memory.
    """
    for start in range(0, count, _PIECE):
        yield slice(start, min(start + _PIECE, count))


def cores() -> int:
    """Return the number of threads to use: ``PVEC_THREADS``, or the cores of this process."""
    given = os.environ.get("PVEC_THREADS", "")
    if given:
        if not given.isdecimal() or int(given) < 1:
            raise RecipeError(f"PVEC_THREADS={given}: write a number of threads, such as 4")
        return int(given)
    affinity = getattr(os, "sched_getaffinity", None)  # macOS lacks it
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def in_parallel(work: Callable[[T], R], items: Sequence[T]) -> Generator[R]:
    """Yield ``work(item)`` for every item, in the order of the items.

    After an error, or when the caller stops iterating, no further item is begun. A call inside
    another ``in_parallel`` uses one thread, and so does torch, since the pieces are too small for
    it to gain from more.
    """
    torch = sys.modules.get("torch")  # a process that only hashes never imports it
    threads = torch.get_num_threads() if torch else 0
    if getattr(_here, "busy", False):
        yield from map(work, items)
        return
    try:
        if len(items) < 2 or cores() == 1:
            if torch:
                torch.set_num_threads(1)
            yield from map(work, items)
        else:
            pool = ThreadPoolExecutor(cores(), initializer=_begin)
            try:
                yield from pool.map(work, items)
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        # A setting of one thread is the default of threads that start later.
        if torch:
            torch.set_num_threads(threads)


def _begin() -> None:
    _here.busy = True
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
