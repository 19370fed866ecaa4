"""Loops that numba compiles for the CPU on their first call, and keeps on disk from then on.

The first call after an installation takes some seconds more.
"""

import inspect
from collections.abc import Callable
from typing import Any, cast

from numba import njit

Loop = Callable[..., Any]


def compiled(function: Loop) -> Loop:
    """Compile a loop over arrays; while it runs, other threads run too."""
    return _compile(function)


def compiled_sum(function: Loop) -> Loop:
    """Compile a loop that adds up statistics: the order of the sum is left to the compiler."""
    return _compile(function, fastmath={"reassoc"})


def _compile(function: Loop, **options: Any) -> Loop:
    # What a checker of annotations has wrapped around the function, as in our tests, is no loop.
    loop = inspect.unwrap(function)
    options = {"nogil": True, "error_model": "numpy", **options}
    try:
        return cast("Loop", njit(cache=True, **options)(loop))
    except RuntimeError:  # no folder to keep it in can be written
        return cast("Loop", njit(**options)(loop))
