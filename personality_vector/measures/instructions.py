"""Instructions: whether replies keep to a format that a program can check."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from personality_vector.data.personas import Instrument, Item
from personality_vector.data.texts import words
from personality_vector.lab import builtin
from personality_vector.measures.spec import Asking, AskingMeasure, MeasureSpec
from personality_vector.recipes.reading import read_recipe
from personality_vector.recipes.schema import LocalPath, Recipe, Whole, Words
from personality_vector.subject import Better, GenerationSpec, Reading, Subject

_BULLET = re.compile(r"[-*\N{BULLET}]\s")
_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)\n?```", re.DOTALL)
_NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)*\.?")
_QUOTES = "\"'*_ \N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}"
_DEFAULT = "builtin:eval/instruments/instructions.yaml"


class Check(Recipe):
    """What a reply has to keep to: one of these keys.

    Attributes:
        words: At most so many words.
        lines: Exactly so many lines that are not blank.
        starts: It begins with this, in any case of letters; quotes around it do not count.
        ends: It ends with this, in any case of letters; a last full stop does not count.
        contains: This occurs as a word or words of its own, in any case of letters.
        without: This does not occur; a word may be a part of another.
        case: Every letter is a capital (``upper``), or none is (``lower``).
        json: It is a JSON object with these keys, alone or in a fenced block.
        number: It is one number and nothing else.
        bullets: Exactly so many lines begin with a hyphen, an asterisk or a bullet.
    """

    words: Whole | None = Field(default=None, ge=1)
    lines: Whole | None = Field(default=None, ge=1)
    starts: Words | None = None
    ends: Words | None = None
    contains: Words | None = None
    without: Words | None = None
    case: Literal["upper", "lower"] | None = None
    json_keys: Annotated[tuple[Words, ...], Field(min_length=1)] | None = Field(
        default=None, alias="json"
    )
    number: Literal[True] | None = None
    bullets: Whole | None = Field(default=None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _one_that_exists(cls, data: Any) -> Any:
        names = list(_CHECKS)
        if isinstance(data, Mapping) and len(data) == 1 and next(iter(data)) in names:
            return data
        given = ", ".join(map(str, data)) if isinstance(data, Mapping) else repr(data)
        raise ValueError(
            f"give exactly one check with what it needs, such as {{words: 20}}, not {given:.60}; "
            f"known are {', '.join(names)}"
        )

    def is_kept(self, text: str) -> bool:
        """Return whether a reply passes; an empty one never does."""
        ((name, value),) = self.model_dump(by_alias=True, exclude_none=True).items()
        return bool(text.strip()) and _CHECKS[name](text.strip(), value)


class CheckedItem(Item):
    """A request, and the check of its reply."""

    check: Check


class CheckedInstrument(Instrument):
    """Requests that a program can check."""

    items: Annotated[tuple[CheckedItem, ...], Field(min_length=1)]


class InstructionsSpec(MeasureSpec):
    """Requests for a format, each with the check that its reply has to pass."""

    instrument: LocalPath = Field(default_factory=lambda: builtin(_DEFAULT))
    generation: GenerationSpec = GenerationSpec()

    def open(self) -> "Instructions":
        """Read the instrument.

        Raises:
            RecipeError: It is missing, or an item has no check.
        """
        instrument = read_recipe(self.instrument, CheckedInstrument)
        asking = Asking(instrument, self.generation.sampling(), self.generation.samples)
        return Instructions(asking, self.called)


@dataclass(frozen=True, slots=True)
class Instructions(AskingMeasure):
    """The share of replies that keep to the format that was asked for, in [0, 1].

    Every reply counts: one that is empty, cut off or still a thought does not keep to anything, so
    nothing is unscored.

    Attributes:
        asking: The requests, whose items have a ``check``, and how replies are drawn.
    """

    asking: Asking
    name: str = "instructions"

    unit: ClassVar[str] = "share"
    scale: ClassVar[tuple[float, float]] = (0.0, 1.0)
    better: ClassVar[Better] = "high"

    def collect(self, subject: Subject, seed: int) -> list[Reading]:
        """Return the share of kept formats."""
        kept = [
            one.item.check.is_kept(one.reply.text)
            for one in self.asking(subject, seed)
            if isinstance(one.item, CheckedItem)
        ]
        return [Reading(self.name, sum(kept) / len(kept), n=len(kept))]


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _contains(text: str, wanted: str) -> bool:
    """Return whether ``wanted`` occurs, not inside a word where it begins or ends with a letter."""
    found = re.escape(wanted.strip().lower())
    return re.search(rf"(?<!\w){found}(?!\w)", text.lower()) is not None


def _without(text: str, banned: str) -> bool:
    return banned not in text if not banned.isalnum() else not _contains(text, banned)


def _starts(text: str, wanted: str) -> bool:
    rest = text.lower().lstrip(_QUOTES)
    found = wanted.strip().lower()
    return rest.startswith(found) and not rest[len(found) : len(found) + 1].isalnum()


def _ends(text: str, wanted: str) -> bool:
    rest = text.lower().rstrip(_QUOTES + ".!")
    found = wanted.strip().lower().rstrip(".!")
    return rest.endswith(found) and not rest[: -len(found)][-1:].isalnum()


def _is_cased(text: str, case: str) -> bool:
    return text == (text.upper() if case == "upper" else text.lower()) and bool(
        re.search(r"[^\W\d_]", text)
    )


def _is_json(text: str, keys: Sequence[str]) -> bool:
    fenced = _FENCE.fullmatch(text)
    try:
        found = json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.keys() >= set(keys)


_CHECKS: Mapping[str, Callable[[str, Any], bool]] = {
    "words": lambda text, most: len(words(text)) <= most,
    "lines": lambda text, count: len(_lines(text)) == count,
    "starts": _starts,
    "ends": _ends,
    "contains": _contains,
    "without": _without,
    "case": _is_cased,
    "json": _is_json,
    "number": lambda text, _: _NUMBER.fullmatch(text) is not None,
    "bullets": lambda text, count: sum(map(bool, map(_BULLET.match, _lines(text)))) == count,
}
