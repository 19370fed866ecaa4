"""The rows of the table of merge methods, with options, for laws that every row is under."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest

from personality_vector.merging.methods import METHODS

Row = tuple[str, dict[str, Any]]


def _words(method: str) -> dict[str, Any]:
    """Return another choice than the default for every option that is a word."""
    options = METHODS[method].options.items()
    choices = {name: get_args(o.annotation) for name, o in options if _is_word(o)}
    return {name: found[-1] for name, found in choices.items()}


def _numbers(method: str) -> dict[str, Any]:
    """Return another value than the default for every option that is a number."""
    names = [name for name, option in METHODS[method].options.items() if not _is_word(option)]
    return {name: 1.5 if name == "lambda" else 0.3 for name in names}


def _is_word(option: Any) -> bool:
    return get_origin(option.annotation) is Literal


def _with_every_option() -> Iterator[Row]:
    for method in METHODS:
        yield method, {}
        yield method, _words(method) | _numbers(method)


def _neutral() -> Iterator[Row]:
    for method, row in METHODS.items():
        yield method, dict(row.sparsify.neutral)
        if words := _words(method):
            yield method, words | row.sparsify.neutral


def _id(row: Row) -> str:
    return " ".join([row[0], *(f"{name}={value}" for name, value in row[1].items())])


def _parametrize(rows: list[Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("method", "options"), rows, ids=map(_id, rows))


EVERY_ROW = _parametrize(list(_with_every_option()))
"""Every method with its defaults, and with every option at another value."""
NEUTRAL_ROWS = _parametrize(list(_neutral()))
"""Every method with the options under which one delta is ``alpha * delta``."""
