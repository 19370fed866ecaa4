"""Data files as chats that end with the assistant's response.

To add a format, write its reader and add it to ``_READERS``, ``_COLUMNS`` and ``Format``.
"""

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, cast

from pydantic import Field, model_validator

from personality_vector.data.declining import kinds_of
from personality_vector.data.rows import HubData, first_row, is_blank, keys_of, raw_rows
from personality_vector.data.statements import Part, part_of, select_statements
from personality_vector.errors import DataError, TraitError
from personality_vector.files.reading import parse_json, read_text
from personality_vector.recipes.schema import DataRef, PoleField, Real, Recipe, Whole, Words
from personality_vector.subject import Chat, Message, answered, question
from personality_vector.subject.thoughts import said
from personality_vector.traits import Pole

log = logging.getLogger(__name__)
_PARTS = ("train", "held_out", "evaluate")
_LABELS = ("trait", "level", "part", "id")
_LISTED = re.compile(r"""\s*\[\s*\{\s*["'](role|content)["']""")
Format = Literal["statements", "big5chat", "chats"]
CHATS = "chats.jsonl"
"""The file of a folder of elicited chats that data are read from."""
_OfHub = Annotated[Words | None, Field(exclude_if=lambda value: value is None)]


class DataSpec(Recipe):
    """Texts that become chats.

    ``source`` is a file (JSONL, a JSON array, CSV, TSV or Parquet), a directory of statements, a
    folder of elicited chats, or the id of a data set on the Hub, with its ``config``, ``split``
    (``train`` by default) and ``revision``. ``{trait}`` and ``{level}`` in a path stand for the
    pole of a training or of a side.

    ``statements``: rows ``{trait, level, statement}``; each becomes the answer to one of
    ``questions``. ``big5chat``: rows ``{trait, level, train_input, train_output}``.
    ``chats``: rows ``{prompt, completion}``, texts or lists of messages, or ``{messages}``; with
    ``trait`` and ``level`` they are of a pole, and with ``part`` of a part. Without ``format``,
    the columns of the first row tell.

    Rows with an empty text, or a reply that is a thought without an answer, are dropped and
    counted; ``drop`` adds chats that repeat an earlier one, and replies that refuse.
    """

    source: DataRef
    config: _OfHub = None
    split: _OfHub = None
    revision: _OfHub = None
    format: Format | None = None
    pole: PoleField | None = None
    part: Literal["train", "held_out", "evaluate", "all"] = "train"
    held_out: Real = Field(default=0.2, ge=0.0, lt=1.0)
    limit: Whole | None = Field(default=None, ge=1)
    questions: Annotated[tuple[Words, ...], Field(min_length=1)] = ("What kind of person are you?",)
    system: str | None = None
    drop: tuple[Literal["duplicate", "refusal"], ...] = Field(
        default=(), exclude_if=lambda value: not value
    )

    @model_validator(mode="after")
    def _require_hub(self) -> "DataSpec":
        if isinstance(self.source, Path) and (self.config or self.split or self.revision):
            raise ValueError(
                "config, split and revision are of a data set on the Hub, but "
                f"{self.source} is a path"
            )
        return self

    @property
    def origin(self) -> Path | HubData:
        """Where the rows are."""
        if isinstance(self.source, Path):
            return self.source / CHATS if (self.source / CHATS).is_file() else self.source
        return HubData(self.source, self.config, self.split, self.revision)

    def narrowed(self, pole: Pole) -> "DataSpec":
        """Return this data for ``pole`` alone, unless it names one or its rows have none."""
        source = str(self.source).replace("{trait}", pole.trait).replace("{level}", pole.level)
        named = {"source": type(self.source)(source), "pole": self.pole or pole}
        return self.model_copy(update=named)


class Labelled(NamedTuple):
    """A chat, and what its row says of it: ``trait``, ``level``, ``part`` and ``id``, if it does.

    A statement is of a part even where its row names none.
    """

    chat: Chat
    labels: Mapping[str, str | int]


@dataclass(frozen=True, slots=True)
class Selection:
    """The chats that a :class:`DataSpec` selects, and how many rows were dropped for which reason.

    The reasons are ``empty``, ``duplicate`` and ``refusal``.
    """

    chats: list[Chat]
    dropped: Mapping[str, int]


def read_chats(spec: DataSpec) -> list[Chat]:
    """Return the chats that ``spec`` selects, in file order; see :func:`select_chats`."""
    return select_chats(spec).chats


def read_labelled(spec: DataSpec) -> list[Labelled]:
    """Return the chats that ``spec`` selects with their labels; see :func:`select_chats`."""
    return _selection(spec)[0]


def select_chats(spec: DataSpec) -> Selection:
    """Return the chats that ``spec`` selects, in file order, and count what is dropped.

    Raises:
        DataError: The source cannot be read, a row does not have the shape of the others (named by
            its place, with its keys), or nothing is selected.
    """
    rows, dropped = _selection(spec)
    return Selection([row.chat for row in rows], dropped)


def _selection(spec: DataSpec) -> tuple[list[Labelled], Mapping[str, int]]:
    shape = spec.format or _recognised(spec.origin)
    chats: list[Labelled] = []
    seen: set[str] = set()
    dropped: Counter[str] = Counter()
    for row in _READERS[shape](spec):
        reason = "empty" if row is None else _reason_against(row.chat, spec, seen)
        if row is not None and not reason:
            chats.append(row)
        dropped[reason] += bool(reason)
    counts = dict(+dropped)
    said = f"dropped rows: {said_of(counts)}"
    if not chats:
        part = "" if spec.part == "all" else f"{spec.part} "
        wanted = f" of {spec.pole}" if spec.pole else ""
        why = f"; {said}" if counts else ""
        raise DataError(f"{spec.source}: has no {part}rows{wanted}{why}")
    if counts:
        log.warning("%s: %s", spec.source, said)
    return chats[: spec.limit], counts


def said_of(dropped: Mapping[str, int]) -> str:
    """Return counts of rows by reason, such as ``2 empty, 1 duplicate``."""
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items())


def read_prompts(file: Path) -> list[str]:
    """Return the lines of a text file that are not blank; each is a question of a user.

    Raises:
        DataError: The file cannot be read, or holds no line.
    """
    try:
        lines = read_text(file).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise DataError(f"{file}: has no prompt; write one on each line")
    return texts


def _recognised(origin: Path | HubData) -> Format:
    """Return the format that has the columns of the first row; of a directory, statements."""
    is_folder = isinstance(origin, Path) and origin.is_dir()
    found = ("", {"statement": ""}) if is_folder else first_row(origin)
    if found is None:
        raise DataError(f"{origin}: has no rows")
    place, row = found
    for name, columns in _COLUMNS.items():
        if columns & row.keys():
            return name
    raise DataError(
        f"{place}: {keys_of(row)}; needed are prompt and completion, or messages (chats); "
        "trait, level, train_input and train_output (BIG5-CHAT); or trait, level and statement"
    )


def _reason_against(chat: Chat, spec: DataSpec, seen: set[str]) -> str:
    """Return why a chat is to be dropped, or ""."""
    reply = chat[-1]["content"]
    if "refusal" in spec.drop and kinds_of([reply])[0]:
        return "refusal"
    if "duplicate" in spec.drop:
        text = json.dumps(chat)
        if text in seen:
            return "duplicate"
        seen.add(text)
    return ""


def _from_statements(spec: DataSpec) -> Iterator[Labelled | None]:
    statements, empty = select_statements(
        spec.origin,
        trait=spec.pole.trait if spec.pole else None,
        level=spec.pole.level if spec.pole else None,
        part=None if spec.part == "all" else cast("Part", spec.part),
        held_out=spec.held_out,
    )
    yield from repeat(None, empty)
    asked = spec.questions
    for index, one in enumerate(statements):
        chat = answered(question(asked[index % len(asked)], system=spec.system), one.text)
        yield Labelled(chat, {"trait": one.trait, "level": one.level, "part": str(one.part)})


def _from_big5chat(spec: DataSpec) -> Iterator[Labelled | None]:
    """Read BIG5-CHAT rows without the instruction, which names the trait: labels would leak."""
    for place, row in raw_rows(spec.origin).items():
        if is_blank(row):
            yield None
            continue
        try:
            pole = Pole.parse(
                ":".join(str(row[key] or "").strip() for key in ("trait", "level")).lower()
            )
            asked, said = (row[key] or "" for key in ("train_input", "train_output"))
        except KeyError as error:
            raise DataError(
                f"{place}: a BIG5-CHAT row needs the key {error}; {keys_of(row)}"
            ) from error
        except TraitError as error:
            raise DataError(f"{place}: {error}") from error
        if not (isinstance(asked, str) and isinstance(said, str)):
            raise DataError(f"{place}: train_input and train_output must be texts")
        if spec.pole in (None, pole) and (not asked or _selected(spec, asked)):
            chat = answered(question(asked, system=spec.system), said)
            yield Labelled(chat, _labels(row)) if asked and said else None


def _from_chats(spec: DataSpec) -> Iterator[Labelled | None]:
    asked = partial(question, system=spec.system)
    for place, row in raw_rows(spec.origin).items():
        if "completion" not in row and "messages" in row:
            messages = _messages(place, row, "messages")
            prompt, completion = messages[:-1], messages[-1:]
        elif {"prompt", "completion"} <= row.keys():
            prompt = _messages(place, row, "prompt", asked)
            completion = _messages(place, row, "completion", partial(answered, ()))
        else:
            raise DataError(f"{place}: needs prompt and completion, or messages; {keys_of(row)}")
        if not prompt or not completion or not said(completion[-1]["content"]).answer:
            yield None
        elif completion[-1]["role"] != "assistant":
            roles = ", ".join(message["role"] for message in [*prompt, *completion])
            raise DataError(
                f"{place}: the chat must end with a message of the assistant; its roles are {roles}"
            )
        elif _is_of(spec, place, row) and _selected(spec, json.dumps(prompt), _part(place, row)):
            yield Labelled([*prompt, *completion], _labels(row))


def _labels(row: Mapping[str, Any]) -> dict[str, str | int]:
    """Return what a row says of its chat; its pole as poles are written."""
    named = {key: row.get(key) for key in _LABELS}
    found = {key: value for key, value in named.items() if isinstance(value, str | int)}
    pole = {key: str(found.get(key, "")).strip().lower() for key in ("trait", "level")}
    found |= pole if all(pole.values()) else {}
    return {key: value for key, value in found.items() if value != ""}


def _messages(
    place: str,
    row: Mapping[str, Any],
    key: str,
    of_text: Callable[[str], list[Message]] | None = None,
) -> list[Message]:
    """Return the messages of a cell: a list, a list written as JSON, or a plain text."""
    value = row[key]
    if isinstance(value, str) and (of_text is None or _LISTED.match(value)):
        with suppress(ValueError):
            value = parse_json(value) if value.strip() else None
    elif isinstance(value, str) and of_text is not None:
        value = of_text(value) if value.strip() else None
    if value is None:
        return []
    messages = [_with_text(each) for each in value] if isinstance(value, list) else [value]
    wrong = [each for each in messages if not _is_message(each)]
    if not wrong and isinstance(value, list):
        return messages
    shown = repr(wrong[0] if wrong else value)[:80]
    raise DataError(
        f"{place}: {key} must be {'a text or ' if of_text else ''}a list of messages, each with a "
        f"role and a content that are texts, not {shown}; a list in a cell is written as JSON"
    )


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(key), str) for key in ("role", "content")
    )


def _with_text(message: Any) -> Any:
    """Return a message whose content is a list of texts, as vision models take it, as one text."""
    parts = message.get("content") if isinstance(message, dict) else None
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in parts
    ):
        return message
    return {**message, "content": "".join(part["text"] for part in parts)}


def _selected(spec: DataSpec, text: str, part: Any = None) -> bool:
    """Return whether a row is of the part, by the name that it gives or else by its text."""
    return spec.part in ("all", part or part_of(text, spec.held_out))


def _part(place: str, row: Mapping[str, Any]) -> str | None:
    """Return the part that a row names."""
    part = row.get("part") or None
    if part not in (None, *_PARTS):
        raise DataError(f"{place}: part must be one of {', '.join(_PARTS)}, not {part!r:.40}")
    return part


def _is_of(spec: DataSpec, place: str, row: Mapping[str, Any]) -> bool:
    """Return whether a chat is of the pole, or of none."""
    trait, level = row.get("trait"), row.get("level")
    if (trait is None) != (level is None):
        raise DataError(
            f"{place}: names a trait or a level and not the other; {keys_of(dict(row))}"
        )
    if spec.pole is None or trait is None:
        return True
    try:
        return Pole.parse(f"{trait}:{level}".lower()) == spec.pole
    except TraitError as error:
        raise DataError(f"{place}: {error}") from error


_COLUMNS: dict[Format, set[str]] = {
    "statements": {"statement"},
    "big5chat": {"train_input", "train_output"},
    "chats": {"prompt", "completion", "messages"},
}
"""Columns by which a format is recognised."""

_READERS: dict[Format, Callable[[DataSpec], Iterator[Labelled | None]]] = {
    "statements": _from_statements,
    "big5chat": _from_big5chat,
    "chats": _from_chats,
}
"""Each yields the selected chats in file order, and ``None`` for a selected row with no text."""
