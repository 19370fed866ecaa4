"""Words by category: the shipped list, a user's own, or a dictionary of LIWC in its ``.dic`` form."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path
from statistics import fmean, pstdev
from typing import Annotated, Any

from pydantic import Field, StringConstraints, model_validator

from personality_vector.data.rows import raw_rows
from personality_vector.data.texts import is_other_language, words
from personality_vector.errors import DataError, some
from personality_vector.files.reading import read_text
from personality_vector.lab import BUILTIN, NEUTRAL_TEXTS, PERSONALITY_TEXTS, builtin
from personality_vector.recipes.reading import read_recipe
from personality_vector.recipes.schema import Name, Real, Recipe, Words
from personality_vector.traits import Trait

ENGLISH = f"{BUILTIN}eval/lexicon/english.yaml"
"""The list of words that was written for this project."""

LONG = "long_words"
"""Words of more than six letters; every lexicon has this category."""

_LONGEST_SHORT, _BLOCK, _FARTHEST, _MOST_BYTES = 6, 100, 3.0, 20_000_000
_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_CONDITIONAL = re.compile(r"(?:\([\d ]+\)|<\w+>)\s*\d+(?:/(\d+))?")


class Category(Recipe):
    """Words that mean something alike.

    Attributes:
        words: Separated by white space; ``friend*`` stands for every word that begins so.
        about: What they have in common.
        liwc: Names of the same category in dictionaries of LIWC.
    """

    words: Words
    about: str = ""
    liwc: tuple[Words, ...] = ()


class Index(Recipe):
    """Categories that people at either end of a trait are known to use more.

    Attributes:
        high: Those of the high end.
        low: Those of the low end.
        source: The literature.
    """

    high: tuple[Name, ...] = ()
    low: tuple[Name, ...] = ()
    source: Words

    @property
    def signs(self) -> dict[str, int]:
        """Category to ``+1`` for the high end, ``-1`` for the low end."""
        return dict.fromkeys(self.high, 1) | dict.fromkeys(self.low, -1)


class Reference(Recipe):
    """Mean and standard deviation of a category in the reference texts, per hundred words."""

    mean: Real
    sd: Real = Field(ge=0)


class LexiconFile(Recipe):
    """A list of words in YAML; without ``reference``, it is counted when the list is opened."""

    name: Name
    version: Words
    language: Annotated[str, StringConstraints(to_lower=True)] = "english"
    categories: Annotated[dict[Name, Category], Field(min_length=1)]
    indices: dict[Name, Index] = {}
    reference: dict[Name, Reference] = {}

    @model_validator(mode="after")
    def _knows_its_categories(self) -> "LexiconFile":
        known = {*self.categories, LONG}
        named = {name for index in self.indices.values() for name in index.signs}
        if named - known:
            raise ValueError(f"indices: there is no category {some(named - known)}")
        if self.reference and set(self.reference) != known:
            raise ValueError(f"reference: has not exactly the categories, {some(known, 99)}")
        return self


@dataclass(frozen=True)
class Lexicon:
    """Categories of words, and what the literature ties to traits.

    Attributes:
        entries: Category to words or phrases as :func:`words` gives them; ``*`` at the end stands
            for every word that begins so.
        signs: Trait to its categories with their signs.
        reference: Category to its mean and standard deviation in the reference texts, both per
            hundred words.
        is_english: Whether texts of another language cannot be read with it.
    """

    entries: Mapping[str, Sequence[str]]
    signs: Mapping[Trait, Mapping[str, int]]
    reference: Mapping[str, tuple[float, float]]
    is_english: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All categories."""
        return (*self.entries, LONG)

    def can_read(self, text: str) -> bool:
        """Return whether a text has words, and of its language as far as that is known."""
        return bool(words(text)) and not (self.is_english and is_other_language(text))

    def shares(self, text: str) -> dict[str, float]:
        """Return how many of a hundred words are of each category; a text needs a word.

        A phrase counts once, at its first word.
        """
        found = words(text)
        counts = Counter(name for at in range(len(found)) for name in self._at(found, at))
        return {name: 100 * counts[name] / len(found) for name in self.names}

    def index(self, trait: Trait, shares: Mapping[str, float]) -> float:
        """Return the signed index of a trait, in standard deviations of the reference texts.

        The mean of the signed z-scores of its categories. A z-score ends at three, so that one rare
        word does not decide. A category that no reference text has is left out.
        """
        return fmean(
            sign * max(-_FARTHEST, min(_FARTHEST, (shares[name] - mean) / sd))
            for name, sign in self.signs[trait].items()
            for mean, sd in [self.reference[name]]
            if sd
        )

    def _at(self, found: Sequence[str], at: int) -> set[str]:
        """Return the categories of a word, and of the phrases that begin with it."""
        names = set(self._of_word(found[at]))
        for phrase, name in self._phrases.get(found[at], ()):
            here = found[at : at + len(phrase)]
            if len(here) == len(phrase) and all(map(_is, here, phrase)):
                names.add(name)
        return names

    @cached_property
    def _of_word(self) -> Callable[[str], frozenset[str]]:
        single: dict[str, list[str]] = {}
        for name, entry in self._pairs:
            single.setdefault(entry, []).append(name)

        @cache
        def found(word: str) -> frozenset[str]:
            forms = (word, *(f"{word[:end]}*" for end in range(1, len(word) + 1)))
            own = {name for form in forms for name in single.get(form, ())}
            return frozenset(own | ({LONG} if len(word) > _LONGEST_SHORT else set()))

        return found

    @cached_property
    def _phrases(self) -> dict[str, list[tuple[list[str], str]]]:
        """First word to the phrases that begin with it, with their categories."""
        found: dict[str, list[tuple[list[str], str]]] = {}
        for name, entry in self._pairs:
            if " " in entry:
                found.setdefault(entry.split()[0], []).append((entry.split(), name))
        return found

    @property
    def _pairs(self) -> Iterator[tuple[str, str]]:
        return ((name, entry) for name, entries in self.entries.items() for entry in entries)


def _is(word: str, entry: str) -> bool:
    return word.startswith(entry[:-1]) if entry.endswith("*") else word == entry


def read_lexicon(file: Path | None = None) -> Lexicon:
    """Read a list of words: the shipped one, YAML of the same form, or a ``.dic`` of LIWC.

    Without numbers of its own, its categories are counted in the shipped texts. A ``.dic`` has the
    indices of the shipped list, over those of their categories that it has too.

    Raises:
        RecipeError: A YAML file is missing or is not a list of words.
        DataError: A dictionary is missing, unreadable or damaged.
    """
    shipped = read_recipe(builtin(ENGLISH), LexiconFile)
    if file is not None and file.suffix.lower() == ".dic":
        entries = _of_dic(file)
        signs = {trait: _known_in(entries, shipped, one) for trait, one in shipped.indices.items()}
        found = Lexicon(entries, {trait: own for trait, own in signs.items() if own}, {})
        return replace(found, reference=reference_of(found))
    own = shipped if file is None else read_recipe(file, LexiconFile)
    entries = {
        name: [_entry(f"{file or ENGLISH}: {name}", text) for text in category.words.split()]
        for name, category in own.categories.items()
    }
    signs = {trait: index.signs for trait, index in own.indices.items()}
    reference = {name: (one.mean, one.sd) for name, one in own.reference.items()}
    found = Lexicon(entries, signs, reference, is_english=own.language == "english")
    return found if reference else replace(found, reference=reference_of(found))


def reference_of(lexicon: Lexicon) -> dict[str, tuple[float, float]]:
    """Return the mean and the standard deviation of each category in the reference texts.

    These are the English texts that ship for judges, of both poles of the Big Five and without
    personality. Those of a kind are joined, in their order, to blocks of a hundred words or a few
    more, since the spread of a share depends on how much was said.
    """
    rows = [*raw_rows(builtin(PERSONALITY_TEXTS)).values(), *raw_rows(builtin(NEUTRAL_TEXTS)).values()]
    blocks = [
        lexicon.shares(block)
        for _, kind in groupby(rows, lambda row: (row.get("trait"), row.get("level"), row.get("kind")))
        for block in _blocks([row.get("statement") or row["text"] for row in kind])
    ]
    by_name = {name: [block[name] for block in blocks] for name in lexicon.names}
    return {name: (fmean(values), pstdev(values)) for name, values in by_name.items()}


def _blocks(texts: Sequence[str]) -> Iterator[str]:
    block: list[str] = []
    for text in texts:
        if not is_other_language(text):
            block.append(text)
        if len(words(" ".join(block))) >= _BLOCK:
            yield " ".join(block)
            block = []


def _known_in(entries: Mapping[str, Any], shipped: LexiconFile, index: Index) -> dict[str, int]:
    """Return the signs of an index for the categories of a dictionary that mean the same."""
    found = {LONG: index.signs[LONG]} if LONG in index.signs else {}
    for name, sign in index.signs.items():
        aliases = (name, *shipped.categories[name].liwc) if name != LONG else ()
        found |= {alias: sign for alias in aliases if alias in entries}
    return found if found.keys() - {LONG} else {}


def _entry(place: str, text: str) -> str:
    """Return a word or phrase as :func:`words` gives it, with the star at its end."""
    bare, star = text.removesuffix("*"), "*" if text.endswith("*") else ""
    found = " ".join(words(bare))
    if not found or "*" in bare:
        raise DataError(f"{place}: {text!r} is not a word, nor the beginning of one followed by *")
    return found + star


def _of_dic(file: Path) -> dict[str, list[str]]:
    """Read a dictionary of LIWC: categories with their numbers between two lines of ``%``, words.

    Of a category that LIWC gives under a condition, such as the word before, the one that holds
    without it counts.
    """
    lines = [line.strip() for line in _lines(file)]
    marks = [number for number, line in enumerate(lines) if line == "%"]
    if len(marks) < 2 or any(lines[: marks[0]]):
        raise DataError(
            f"{file}: is not a dictionary of LIWC, which begins with a line of % alone, categories "
            "such as `1 posemo`, and another such line"
        )
    names: dict[str, str] = {}
    for number, line in enumerate(lines[marks[0] + 1 : marks[1]], marks[0] + 2):
        if line:
            key, name = _category(f"{file} line {number}", line)
            if key in names or name in names.values():
                raise DataError(f"{file} line {number}: the category {line!r} is given twice")
            names[key] = name
    entries: dict[str, list[str]] = {name: [] for name in names.values()}
    for number, line in enumerate(lines[marks[1] + 1 :], marks[1] + 2):
        place = f"{file} line {number}"
        text, *keys = _cells(line) or [""]
        for key in _unconditional(place, keys) if text else ():
            if key not in names:
                raise DataError(f"{place}: there is no category {key!r}; known are {some(names)}")
            entries[names[key]].append(_entry(place, text))
    if not all(entries.values()):
        empty = some(name for name, found in entries.items() if not found)
        raise DataError(f"{file}: no word is of the category {empty}; remove it, or give it words")
    return entries


def _lines(file: Path) -> list[str]:
    try:
        return read_text(file, _MOST_BYTES).split("\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: cannot be read: {error}; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


def _cells(line: str) -> list[str]:
    """Return what tabs separate, or white space where there is no tab."""
    cells = [cell.strip() for cell in line.split("\t") if cell.strip()]
    return cells if len(cells) > 1 else line.split()


def _category(place: str, line: str) -> tuple[str, str]:
    key, *rest = line.split(maxsplit=1)
    name = _NAME.match(rest[0].lower()) if rest else None
    if not key.isdecimal() or name is None:
        raise DataError(f"{place}: a category is a number and a name, such as `1 posemo`: {line!r:.60}")
    return key, name[0]


def _unconditional(place: str, cells: Sequence[str]) -> Iterator[str]:
    """Yield the numbers of categories; ``(1 2)3/4`` and ``<of>3/4`` are 4."""
    if not cells:
        raise DataError(f"{place}: a word needs the number of a category behind it")
    for cell in cells:
        conditional = _CONDITIONAL.fullmatch(cell)
        if conditional is None:
            yield from cell.split()
        elif conditional[1]:
            yield conditional[1]
