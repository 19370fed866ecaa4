"""Unions by key: what a mapping describes is recognised by a key of its own, never by ``kind:``.

A registry maps the key to the schema, as ``module:Class``; it is imported when it is met, so that
reading a recipe imports only what the recipe uses.
"""

import difflib
import inspect
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from pydantic import ValidationError

from personality_vector.errors import RecipeError
from personality_vector.recipes.schema import Recipe, sentence

Registry = Mapping[str, str]


class Kinds(Mapping[str, str]):
    """The registry of a room in which each kind is a file: its key is the name of the file.

    A kind is a schema that can be opened. To add one, add a file.
    """

    def __init__(self, room: str) -> None:
        self._room = room

    @cached_property
    def _found(self) -> dict[str, str]:
        room = import_module(f"personality_vector.{self._room}")
        names = [one.name for one in iter_modules(room.__path__)]
        modules = {name: import_module(f"{room.__name__}.{name}") for name in names}
        return {
            key: f"{self._room}.{key}:{name}"
            for key, module in modules.items()
            for name, found in inspect.getmembers(module, _is_kind)
            if found.__module__ == module.__name__
        }

    def __getitem__(self, key: str) -> str:
        return self._found[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def _is_kind(thing: Any) -> bool:
    is_schema = inspect.isclass(thing) and issubclass(thing, Recipe) and hasattr(thing, "open")
    return is_schema and not inspect.isabstract(thing)


def schema_of(registry: Registry, key: str) -> type[Recipe]:
    """Return the schema that a key stands for."""
    module, _, name = registry[key].partition(":")
    found: type[Recipe] = getattr(import_module(f"personality_vector.{module}"), name)
    return found


def key_of(registry: Registry, schema: type[Recipe]) -> str:
    """Return the key that a schema is recognised by."""
    place = f"{schema.__module__.removeprefix('personality_vector.')}:{schema.__name__}"
    return next(key for key, known in registry.items() if known == place)


def by_own_key(registry: Registry, value: Any, info: Any, what: str) -> Any:
    """Return ``{label: ..., delta: ...}`` as the schema of its key, here ``delta``.

    Raises:
        ValueError: It has no such key or keys of two kinds, or its schema refuses it.
    """
    if not isinstance(value, Mapping):
        return value
    keys = [key for key in registry if value.get(key) is not None]
    if len(keys) > 1 and len({registry[key] for key in keys}) > 1:
        raise ValueError(
            f"{what} has keys of two kinds, {keys[0]} and {keys[1]}: give exactly one of "
            f"{_listed(registry)}"
        )
    if not keys:
        raise ValueError(f"{_unknown(registry, value)}give exactly one of {_listed(registry)}")
    return _validated(schema_of(registry, keys[0]), value, info)


def by_only_key(registry: Registry, value: Any, info: Any, what: str) -> Any:
    """Return ``{likelihood: {...}}`` as the schema of its one key; a bare word means no options.

    Raises:
        ValueError: The key is unknown or not alone, or its schema refuses what it holds.
    """
    if isinstance(value, str):
        value = {value: {}}
    if not isinstance(value, Mapping):
        return value
    if len(value) != 1:
        raise ValueError(
            f"{what} is one key with its options below it, such as {next(iter(registry))}: "
            f"{{...}}; this one has {len(value)} keys"
        )
    ((key, body),) = value.items()
    if key not in registry:
        raise ValueError(f"{_unknown(registry, value)}known are {_listed(registry)}")
    return _validated(schema_of(registry, key), body or {}, info)


def _validated(schema: type[Recipe], value: Any, info: Any) -> Recipe:
    try:
        return schema.model_validate(value, context=info.context)
    except ValidationError as error:
        raise ValueError(sentence(schema, error)) from error
    except RecipeError as error:
        raise ValueError(str(error)) from error


def _unknown(registry: Registry, value: Mapping[str, Any]) -> str:
    for key in value:
        close = difflib.get_close_matches(str(key), registry, n=1)
        if close:
            return f"unknown key {key!r}; did you mean {close[0]!r}? "
    return ""


def _listed(registry: Registry) -> str:
    *most, last = registry
    return f"{', '.join(most)} or {last}" if most else last
