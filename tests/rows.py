"""The rows of the table of merge methods, with options, for laws that every row is under."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest

from personality_vector.merging.methods import METHODS

Row = tuple[str, dict[str, Any]]


def altered(method: str) -> dict[str, Any]:
    """Return every option of a method at another value than its default."""
    return {
        name: get_args(option.annotation)[-1]
        if is_word(option)
        else (1.5 if name == "lambda" else 0.1)
        for name, option in METHODS[method].options.items()
    }


def is_word(option: Any) -> bool:
    """Return whether an option is one of some words."""
    return get_origin(option.annotation) is Literal


def _with_every_option() -> Iterator[Row]:
    for method in METHODS:
        yield method, {}
        yield method, altered(method)


def _neutral() -> Iterator[Row]:
    for method, row in METHODS.items():
        yield method, dict(row.sparsify.neutral)
        words = {n: value for n, value in altered(method).items() if is_word(row.options[n])}
        if words:
            yield method, words | row.sparsify.neutral


def _id(row: Row) -> str:
    return " ".join([row[0], *(f"{name}={value}" for name, value in row[1].items())])


def _parametrize(rows: list[Row]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("method", "options"), rows, ids=map(_id, rows))


EVERY_ROW = _parametrize(list(_with_every_option()))
"""Every method with its defaults, and with every option at another value."""
NEUTRAL_ROWS = _parametrize(list(_neutral()))
"""Every method with the options under which one delta is ``alpha * delta``."""
