"""Dictionaries of LIWC in their classic form: numbered categories, then words with the numbers."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from personality_vector.data.texts import words
from personality_vector.errors import DataError, some
from personality_vector.files.reading import read_text

_MOST_BYTES = 20_000_000
_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_CONDITIONAL = re.compile(r"(?:\([\d ]+\)|<\w+>)\s*\d+(?:/(\d+))?")
_Numbered = tuple[str, str]
"""Where a line stands, and the line."""


def read_dic(file: Path) -> dict[str, list[str]]:
    """Return category to words, as :func:`entry_of` gives them.

    A line of ``%``, lines of a number and a name, a line of ``%``, and lines of a word and numbers.
    Of what LIWC counts under a condition, such as the word before, only what it counts otherwise
    is taken: the last number of ``(1 2)3/4`` and of ``<of>3/4``.

    Raises:
        DataError: The file cannot be read or has another form; the line is named.
    """
    lines = [(f"{file} line {n}", line.strip()) for n, line in enumerate(_lines(file), 1)]
    marks = [number for number, (_, line) in enumerate(lines) if line == "%"]
    if len(marks) < 2 or any(line for _, line in lines[: marks[0]]):
        raise DataError(
            f"{file}: is not a dictionary of LIWC: a line of % alone, categories such as "
            "`1 posemo`, another such line, and words such as `happy 1`"
        )
    first, last = marks[:2]
    names = _categories([one for one in lines[first + 1 : last] if one[1]])
    found: dict[str, list[str]] = {name: [] for name in names.values()}
    for place, line in lines[last + 1 :]:
        if line:
            text, *cells = _cells(line)
            entry = entry_of(place, text)
            for name in _categories_of(place, cells, names):
                found[name].append(entry)
    if not any(found.values()):
        raise DataError(f"{file}: has no words; below the second % write words such as `happy 1`")
    return found


def entry_of(place: str, text: str) -> str:
    """Return a word or phrase as :func:`words` gives it, with the star at its end if it has one.

    >>> entry_of("", "Self-Conscious*")
    'self conscious*'

    Raises:
        DataError: It has no word, or a star elsewhere; ``place`` is named.
    """
    bare, star = text.removesuffix("*"), "*" if text.endswith("*") else ""
    found = " ".join(words(bare))
    if not found or "*" in bare:
        raise DataError(f"{place}: {text!r:.60} is not a word, or the start of words and then a *")
    return found + star


def _lines(file: Path) -> list[str]:
    try:
        return read_text(file, _MOST_BYTES).split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: cannot be read: {error}; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


def _categories(lines: Sequence[_Numbered]) -> dict[str, str]:
    """Return number to name."""
    found: dict[str, str] = {}
    for place, line in lines:
        number, *rest = line.split(maxsplit=1)
        name = _NAME.match(rest[0].lower()) if rest else None
        if not number.isdecimal() or name is None:
            raise DataError(
                f"{place}: a category is a number and a name, such as `1 posemo`, not {line!r:.60}"
            )
        if number in found or name[0] in found.values():
            raise DataError(f"{place}: the category {line!r:.60} is given twice")
        found[number] = name[0]
    return found


def _cells(line: str) -> list[str]:
    """Return what tabs separate, or white space where there is no tab."""
    cells = [cell.strip() for cell in line.split("\t") if cell.strip()]
    return cells if len(cells) > 1 else line.split()


def _categories_of(place: str, cells: Sequence[str], names: Mapping[str, str]) -> Iterator[str]:
    """Yield the categories of a word."""
    if not cells:
        raise DataError(f"{place}: a word needs the number of a category behind it")
    for number in _CONDITIONAL.sub(lambda one: f" {one[1] or ''} ", " ".join(cells)).split():
        if number not in names:
            known = some(f"{key} {name}" for key, name in names.items())
            raise DataError(f"{place}: {number!r:.40} is not one of the categories {known}")
        yield names[number]
