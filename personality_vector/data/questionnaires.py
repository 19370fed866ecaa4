"""Questionnaires: the items of a user's file, and the key that says what they measure."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from personality_vector.data.rows import is_blank, raw_rows
from personality_vector.errors import DataError, some
from personality_vector.files.reading import parse_json, read_text
from personality_vector.lab import BUILTIN, builtin
from personality_vector.recipes.reading import read_recipe
from personality_vector.recipes.schema import (
    Name,
    Real,
    Recipe,
    Whole,
    Words,
    located,
    sentence,
)
from personality_vector.traits import BIG_FIVE, Pole, Trait

_NUMBERED = re.compile(r"(\d+)[.)]\s+(\S.*)")
_MOST_BYTES = 10_000_000
_LETTERS: Mapping[str, Trait] = {trait[0].upper(): trait for trait in BIG_FIVE}
_SIGNS: Mapping[str, Literal[1, -1]] = {"1": 1, "-1": -1}
_SCALE = (1, 5)
_OPTIONS = (
    "Completely wrong",
    "Mostly wrong",
    "Partly right and partly wrong",
    "Mostly right",
    "Completely right",
)
_COLUMNS = ("label_raw", "text", "label_ocean", "key")
_SHAPES = (
    f"is not a questionnaire: give a CSV with the columns {', '.join(_COLUMNS)}, a JSON object "
    "with questions and select, or a text with one item a line"
)

Options = Annotated[tuple[Words, ...], Field(min_length=2, max_length=26)]
Numbers = tuple[Whole, ...]


class Norms(Recipe):
    """What people score, for comparison.

    Attributes:
        who: Who they are.
        n: How many they are, where it is known.
        traits: Mean and standard deviation of people's scores, on the scale of the questionnaire.
    """

    who: Words
    n: Whole | None = Field(default=None, ge=1)
    traits: dict[Name, tuple[Real, Real]]


class Key(Recipe):
    """What the items of a questionnaire measure, by their numbers; it holds no item.

    Attributes:
        name: Such as ``bfi-44``.
        source: Where these facts stand.
        scale: The whole numbers that its lowest and its highest option stand for.
        options: What may be answered, the lowest first, where the file of items does not say it.
        traits: The items of each trait.
        reversed: The items to which agreeing points to the low end.
        facets: The items of each facet, all of which are of one trait.
        norms: What people score.
    """

    name: Name
    source: Words
    scale: tuple[Whole, Whole] = _SCALE
    options: Options = _OPTIONS
    traits: Annotated[dict[Name, Numbers], Field(min_length=1)]
    reversed: Numbers = ()
    facets: dict[Name, Numbers] = Field(default_factory=dict)
    norms: Norms | None = None

    @model_validator(mode="after")
    def _each_item_once(self) -> "Key":
        if misfit := _misfit(self.options, self.scale):
            raise ValueError(f"options: {misfit}")
        for what, groups in (("traits", self.traits), ("facets", self.facets)):
            counts = Counter(number for group in groups.values() for number in group)
            if twice := [number for number, count in counts.items() if count > 1]:
                raise ValueError(f"{what}: item {min(twice)} is given twice")
        return self

    @model_validator(mode="after")
    def _all_of_its_traits(self) -> "Key":
        traits = self.of_item
        for what, numbers in (("reversed", self.reversed), *self.facets.items()):
            if strange := set(numbers) - traits.keys():
                raise ValueError(f"{what}: item {min(strange)} belongs to no trait")
        for facet, numbers in self.facets.items():
            if len({traits[number] for number in numbers}) != 1:
                raise ValueError(f"{facet}: needs items, all of them of one trait")
        if self.norms and (unknown := set(self.norms.traits) - set(self.traits)):
            raise ValueError(f"norms: {some(unknown)} is not among the traits")
        return self

    @property
    def of_item(self) -> dict[int, Trait]:
        """The trait of each item."""
        return {number: trait for trait, group in self.traits.items() for number in group}

    def items(self, texts: Mapping[str, str]) -> "tuple[QuestionnaireItem, ...]":
        """Return items with their traits, directions and facets.

        Args:
            texts: Number of each item to what it says.

        Raises:
            DataError: The key has items that are not there, or lacks some that are.
        """
        traits, facets = self.of_item, {n: f for f, group in self.facets.items() for n in group}
        wanted = set(map(str, traits))
        if lacking := wanted - texts.keys():
            raise DataError(f"lacks the items {some(lacking)} of the key {self.name}")
        if strange := texts.keys() - wanted:
            raise DataError(f"has the items {some(strange)}, which the key {self.name} does not")
        return tuple(
            QuestionnaireItem(
                id=number,
                text=text,
                trait=traits[int(number)],
                keyed=-1 if int(number) in self.reversed else 1,
                facet=facets.get(int(number)),
            )
            for number, text in texts.items()
        )


@dataclass(frozen=True, slots=True)
class QuestionnaireItem:
    """One statement about oneself.

    Attributes:
        id: Its number.
        text: The statement.
        trait: What it measures.
        keyed: ``-1`` where agreeing points to the low end of the trait.
        facet: Which side of the trait, where that is known.
    """

    id: str
    text: str
    trait: Trait
    keyed: Literal[1, -1]
    facet: str | None = None

    @property
    def direction(self) -> str:
        """The end that agreeing points to."""
        return str(Pole(self.trait, "high" if self.keyed == 1 else "low"))


@dataclass(frozen=True, slots=True)
class Questionnaire:
    """Statements about oneself, and the options with which one agrees or disagrees.

    Attributes:
        items: The statements.
        options: What may be answered, the lowest first.
        scale: The numbers that the first and the last option stand for; the others lie between, at
            equal steps of 1.
        norms: What people score.
    """

    items: tuple[QuestionnaireItem, ...]
    options: tuple[str, ...]
    scale: tuple[int, int]
    norms: Norms | None = field(default=None, compare=False)

    def about(self, traits: Iterable[Trait]) -> "Questionnaire":
        """Return it without the items of other traits.

        Raises:
            DataError: A trait has no items.
        """
        wanted, there = [*traits], {item.trait for item in self.items}
        if lacking := set(wanted) - there:
            raise DataError(f"no item is about {some(lacking)}; there are {some(there, 5)}")
        return replace(self, items=tuple(item for item in self.items if item.trait in wanted))


def shipped_key(name: str | Path) -> Path:
    """Return the file of a shipped key that is called by its name, and any other path unchanged."""
    file = builtin(f"{BUILTIN}eval/keys/{name}.yaml")
    return file if file.is_file() else Path(name)


def _located(value: Any, info: Any) -> Any:
    shipped = shipped_key(value) if isinstance(value, str) else value
    return shipped if shipped != Path(str(value)) else located(value, info)


KeyRef = Annotated[Path, BeforeValidator(_located)]
"""The name of a shipped key, such as ``bfi-44``, or the file of one's own."""


def read_questionnaire(path: str | Path, key: str | Path | None = None) -> Questionnaire:
    """Return the questionnaire in a file, whose shape is recognised.

    Args:
        path: A CSV like that of MPI, with the columns ``label_raw, text, label_ocean, key``: a
            facet, an item, one of ``O C E A N``, and 1 or -1; a JSON object ``{questions: [{id,
            text}], select: [{id, text}]}`` with options from 1 up; or a text with one item a line,
            each with its number in front ("12." or "12)") or none of them.
        key: The name of a shipped :class:`Key`, or its file. A CSV needs none; with one, both must
            agree.

    Raises:
        RecipeError: The key is missing, or not one.
        DataError: The file cannot be read, has none of these shapes, or does not fit the key.
    """
    path = Path(path)
    text = _text(path)
    known = None if key is None else read_recipe(shipped_key(key), Key)
    begin, _, _ = text.lstrip().partition("\n")
    if path.suffix.lower() in (".csv", ".tsv") or "label_ocean" in begin:
        found = _of_table(path)
    elif begin[:1] in ("{", "["):
        found = _of_json(path, text)
    else:
        found = _Form(_of_lines(path, text))
    return _keyed(path, found, known)


class _Form(NamedTuple):
    """What a file says: the texts of items by number, options, and perhaps what items measure."""

    texts: Mapping[str, str]
    options: tuple[str, ...] | None = None
    items: tuple[QuestionnaireItem, ...] | None = None


def _keyed(path: Path, form: _Form, key: Key | None) -> Questionnaire:
    """Return the questionnaire of a file and a key."""
    if key is None:
        if form.items is None:
            raise DataError(
                f"{path}: does not say what its items measure; give a key: ipip-neo-120, bfi-44, "
                "or a file of your own"
            )
        return Questionnaire(form.items, _OPTIONS, _SCALE)
    options = form.options or key.options
    if misfit := _misfit(options, key.scale):
        raise DataError(f"{path}: {misfit}, which is that of the key {key.name}")
    try:
        items = key.items(form.texts)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    for own, one in zip(form.items or (), items, strict=False):
        if (own.trait, own.keyed) != (one.trait, one.keyed):
            raise DataError(
                f"{path}: item {one.id} is {own.direction}, and {one.direction} in the key "
                f"{key.name}; leave the key out, or give another"
            )
    return Questionnaire(items, options, key.scale, key.norms)


def _misfit(options: Sequence[str], scale: tuple[int, int]) -> str:
    """Return why options do not stand for the numbers of a scale, or ""."""
    low, high = scale
    fits = low < high and len(options) == high - low + 1
    needed = f"needs {high - low + 1}" if low < high else "does not rise"
    return "" if fits else f"has {len(options)} options, and a scale from {low} to {high} {needed}"


def _text(path: Path) -> str:
    try:
        text = read_text(path, _MOST_BYTES)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is not UTF-8: {error}; save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if not text.strip():
        raise DataError(f"{path}: is empty, and {_SHAPES}")
    return text


def _of_table(path: Path) -> _Form:
    rows = {place: row for place, row in raw_rows(path).items() if not is_blank(row)}
    if not rows or not set(_COLUMNS) <= next(iter(rows.values())).keys():
        raise DataError(f"{path}: {_SHAPES}")
    items = tuple(_item(str(n), *row) for n, row in enumerate(rows.items(), 1))
    return _Form({item.id: item.text for item in items}, None, items)


def _item(number: str, place: str, row: Mapping[str, Any]) -> QuestionnaireItem:
    facet, text, letter, sign = (str(row[column] or "").strip() for column in _COLUMNS)
    for column, given, known in (("label_ocean", letter, _LETTERS), ("key", sign, _SIGNS)):
        if given not in known:
            raise DataError(f"{place}: {column} is {given!r}; it must be {' or '.join(known)}")
    if not text:
        raise DataError(f"{place}: has no text")
    name = re.sub(r"[^a-z0-9]+", "-", facet.lower()).strip("-")
    return QuestionnaireItem(number, text, _LETTERS[letter], _SIGNS[sign], name or None)


class _Numbered(Recipe):
    model_config = ConfigDict(extra="ignore")
    id: Whole
    text: Words


class _Json(Recipe):
    model_config = ConfigDict(extra="ignore")
    questions: Annotated[tuple[_Numbered, ...], Field(min_length=1)]
    select: Annotated[tuple[_Numbered, ...], Field(min_length=2)]

    @model_validator(mode="after")
    def _numbered(self) -> "_Json":
        if [one.id for one in self.select] != [*range(1, len(self.select) + 1)]:
            raise ValueError("select: the options must have the ids 1, 2, 3 and so on, in order")
        return self


def _of_json(path: Path, text: str) -> _Form:
    try:
        data = parse_json(text)
    except ValueError as error:
        raise DataError(f"{path}: is not JSON: {error}") from error
    if not isinstance(data, dict) or not {"questions", "select"} <= data.keys():
        raise DataError(f"{path}: {_SHAPES}")
    try:
        form = _Json.model_validate(data)
    except ValidationError as error:
        raise DataError(f"{path}: {sentence(_Json, error)}") from error
    texts = _by_number(path, [(str(one.id), one.text.strip()) for one in form.questions])
    return _Form(texts, tuple(one.text.strip() for one in form.select))


def _of_lines(path: Path, text: str) -> dict[str, str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    found = [_NUMBERED.fullmatch(line) for line in lines]
    if not any(found):
        return {str(number): line for number, line in enumerate(lines, 1)}
    if not all(found):
        bare = lines[found.index(None)]
        raise DataError(f"{path}: {bare!r:.60} has no number in front, and other lines have one")
    return _by_number(path, [(str(int(one[1])), one[2]) for one in found if one])


def _by_number(path: Path, rows: Sequence[tuple[str, str]]) -> dict[str, str]:
    counts = Counter(number for number, _ in rows)
    if twice := [number for number, count in counts.items() if count > 1]:
        raise DataError(f"{path}: two items have the number {some(twice)}")
    return dict(rows)
