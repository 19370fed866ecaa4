"""The checks of annotations, at a third of what they cost: the half of a suite without this.

jaxtyping decorates every function of the package. Patched here, before any of it is imported, are

- where compiled files lie. jaxtyping looks for files of its own until a module has been executed,
  and so compiles anew whatever it imports meanwhile: transformers and TRL, 2,500 files.
- functions that name no axis, which is most: they need beartype alone. The others check their
  arguments once, not again with the result.
- functions within functions, which are decorated again with each call of the outer one. Of each,
  the first is checked.
"""

from collections.abc import Callable
from functools import partial, wraps
from importlib.machinery import SourceFileLoader
from inspect import isgeneratorfunction
from types import CodeType, FunctionType
from typing import Any, ForwardRef, Literal, get_args, get_origin
from unittest.mock import patch

import jaxtyping
from beartype import beartype
from jaxtyping import AbstractArray, _import_hook

_jaxtyped = jaxtyping.jaxtyped
_seen: set[tuple[str, CodeType]] = set()


def _parts(hint: Any) -> list[Any]:
    """Return what an annotation is made of: ``Shape`` and ``int`` of ``dict[int, Shape]``."""
    inner = hint if isinstance(hint, list) else get_args(hint)  # a list: what a Callable takes
    if not inner or get_origin(hint) is Literal:
        return [hint]
    return [part for one in inner for part in _parts(one)]


def _names_an_axis(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, AbstractArray) and part.dim_str != "..."


def _with_axes_of_its_own(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _jaxtyped("context"):
            return function(*args, **kwargs)

    return call


def _checked(*, typechecker: Callable[..., Any]) -> Callable[..., Any]:
    def decorate(it: Any) -> Any:
        if not isinstance(it, FunctionType):
            return _jaxtyped(it, typechecker=typechecker)
        if (it.__module__, it.__code__) in _seen:
            return it
        _seen.add((it.__module__, it.__code__))
        parts = [part for hint in it.__annotations__.values() for part in _parts(hint)]
        has_axes = any(map(_names_an_axis, parts))
        # jaxtyping passes over what it cannot resolve, and checks a generator where it is made.
        if any(isinstance(part, str | ForwardRef) for part in parts) or (
            has_axes and isgeneratorfunction(it)
        ):
            return _jaxtyped(it, typechecker=typechecker)
        return _with_axes_of_its_own(beartype(it)) if has_axes else beartype(it)

    return decorate


def _code(loader: _import_hook._JaxtypingLoader, name: str) -> CodeType | None:
    own = partial(_import_hook._optimized_cache_from_source, loader._typechecker.get_hash())
    with patch("importlib._bootstrap_external.cache_from_source", own):
        return SourceFileLoader.get_code(loader, name)


jaxtyping.jaxtyped = _checked
_import_hook._JaxtypingLoader.get_code = _code
_import_hook._JaxtypingLoader.exec_module = SourceFileLoader.exec_module
