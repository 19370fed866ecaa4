"""Words by category, how often a text has them, and what the literature ties to traits."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path
from statistics import fmean, pstdev
from typing import Annotated, Any

from pydantic import Field, StringConstraints, model_validator

from personality_vector.data.liwc import entry_of, read_dic
from personality_vector.data.rows import raw_rows
from personality_vector.data.texts import is_other_language, words
from personality_vector.errors import some
from personality_vector.lab import BUILTIN, NEUTRAL_TEXTS, PERSONALITY_TEXTS, builtin
from personality_vector.recipes.reading import read_recipe
from personality_vector.recipes.schema import Name, Real, Recipe, Words
from personality_vector.traits import Trait

ENGLISH = f"{BUILTIN}eval/lexicon/english.yaml"
"""The list of words that was written for this project."""

LONG = "long_words"
"""Words of more than six letters; every lexicon has this category."""

_LONGEST_SHORT, _BLOCK, _FARTHEST = 6, 100, 3.0


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

    @model_validator(mode="after")
    def _says_one_thing(self) -> "Index":
        if both := set(self.high) & set(self.low):
            raise ValueError(f"{some(both)} cannot be a sign of both ends")
        if not self.high and not self.low:
            raise ValueError("names no category; give high, low or both")
        return self

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
    indices: dict[Name, Index] = Field(default_factory=dict)
    reference: dict[Name, Reference] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _knows_its_categories(self) -> "LexiconFile":
        known = {*self.categories, LONG}
        named = {name for index in self.indices.values() for name in index.signs}
        if named - known:
            raise ValueError(f"indices: there is no category {some(named - known)}")
        if self.reference and set(self.reference) != known:
            raise ValueError(f"reference: needs every category and no other: {some(known, 99)}")
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
        word does not decide.
        """
        return fmean(
            sign * max(-_FARTHEST, min(_FARTHEST, (shares[name] - mean) / sd))
            for name, sign in self.signs[trait].items()
            for mean, sd in [self.reference[name]]
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
    indices of the shipped list, over those of their categories that it has too. A category that the
    reference texts do not have is in no index, and an index of no category is left out.

    Raises:
        RecipeError: A YAML file is missing or is not a list of words.
        DataError: A dictionary is missing, unreadable or damaged.
    """
    own = read_recipe(builtin(ENGLISH), LexiconFile)
    if file is not None and file.suffix.lower() == ".dic":
        entries = read_dic(file)
        signs = {trait: _known_in(entries, own, index) for trait, index in own.indices.items()}
        return _with_reference(Lexicon(entries, signs, {}))
    if file is not None:
        own = read_recipe(file, LexiconFile)
    entries = {
        name: [entry_of(f"{file or ENGLISH}: {name}", text) for text in category.words.split()]
        for name, category in own.categories.items()
    }
    signs = {trait: index.signs for trait, index in own.indices.items()}
    reference = {name: (one.mean, one.sd) for name, one in own.reference.items()}
    return _with_reference(Lexicon(entries, signs, reference, own.language == "english"))


def _with_reference(lexicon: Lexicon) -> Lexicon:
    """Return it with its numbers, and with the indices that they allow."""
    reference = lexicon.reference or reference_of(lexicon)
    signs = {
        trait: {name: sign for name, sign in own.items() if reference[name][1] > 0}
        for trait, own in lexicon.signs.items()
    }
    kept = {trait: own for trait, own in signs.items() if own}
    return replace(lexicon, reference=reference, signs=kept)


def reference_of(lexicon: Lexicon) -> dict[str, tuple[float, float]]:
    """Return the mean and the standard deviation of each category in the reference texts.

    These are the English texts that ship for judges, of both poles of the Big Five and without
    personality. Those of a kind are joined, in their order, to blocks of a hundred words or a few
    more, since the spread of a share depends on how much was said.
    """
    rows = [
        *raw_rows(builtin(PERSONALITY_TEXTS)).values(),
        *raw_rows(builtin(NEUTRAL_TEXTS)).values(),
    ]
    blocks = [
        lexicon.shares(block)
        for _, kind in groupby(
            rows, lambda row: (row.get("trait"), row.get("level"), row.get("kind"))
        )
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
        # One category counts once, whatever names a dictionary has for it.
        known = next((alias for alias in aliases if alias in entries), None)
        found |= {} if known is None else {known: sign}
    return found if found.keys() - {LONG} else {}
