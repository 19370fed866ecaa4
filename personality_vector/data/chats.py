"""Data files as chats that end with the assistant's response.

To add a format, write its reader and add it to ``_READERS`` and ``DataSpec.format``.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from personality_vector.data.rows import raw_rows
from personality_vector.data.statements import part_of, read_statements
from personality_vector.errors import DataError, TraitError
from personality_vector.files.reading import read_text
from personality_vector.recipes.schema import LocalPath, PoleField, Real, Recipe, Whole, Words
from personality_vector.subject import Chat, answered, question
from personality_vector.traits import Pole


class DataSpec(Recipe):
    """Texts that become chats.

    ``statements``: rows ``{trait, level, statement}``; each becomes the answer to one of
    ``questions``. ``big5chat``: rows ``{trait, level, train_input, train_output}``.
    ``chats``: rows ``{prompt, completion}`` of chat messages, as TRL takes them.
    """

    source: LocalPath
    format: Literal["statements", "big5chat", "chats"] = "statements"
    pole: PoleField | None = None
    part: Literal["train", "held_out", "all"] = "train"
    held_out: Real = Field(default=0.2, ge=0.0, lt=1.0)
    limit: Whole | None = Field(default=None, ge=1)
    questions: Annotated[tuple[Words, ...], Field(min_length=1)] = ("What kind of person are you?",)
    system: str | None = None

    def narrowed(self, pole: Pole) -> "DataSpec":
        """Return this data for ``pole`` alone, unless it names one or its rows have none."""
        if self.pole is not None or self.format == "chats":
            return self
        return self.model_copy(update={"pole": pole})


def read_chats(spec: DataSpec) -> list[Chat]:
    """Return the chats that ``spec`` selects, in file order.

    Raises:
        DataError: The file is missing, a line cannot be read (named by its number), or nothing
            is selected.
    """
    chats = _READERS[spec.format](spec)
    if not chats:
        wanted = f" of {spec.pole}" if spec.pole else ""
        raise DataError(f"{spec.source}: has no {spec.part} rows{wanted}")
    return chats[: spec.limit]


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


def _from_statements(spec: DataSpec) -> list[Chat]:
    statements = read_statements(
        spec.source,
        trait=spec.pole.trait if spec.pole else None,
        level=spec.pole.level if spec.pole else None,
        part=None if spec.part == "all" else spec.part,
        held_out=spec.held_out,
    )
    asked = spec.questions
    return [
        answered(question(asked[index % len(asked)], system=spec.system), statement.text)
        for index, statement in enumerate(statements)
    ]


def _from_big5chat(spec: DataSpec) -> list[Chat]:
    """Read BIG5-CHAT rows without the instruction, which names the trait: labels would leak."""
    chats: list[Chat] = []
    for place, row in raw_rows(spec.source).items():
        try:
            pole = Pole.parse(f"{row['trait']}:{row['level']}".lower())
            asked, said = (row[key] or "" for key in ("train_input", "train_output"))
        except KeyError as error:
            raise DataError(f"{place}: a BIG5-CHAT row needs the key {error}") from error
        except TraitError as error:
            raise DataError(f"{place}: {error}") from error
        if not (isinstance(asked, str) and isinstance(said, str)):
            raise DataError(f"{place}: train_input and train_output must be texts")
        if spec.pole in (None, pole) and asked and said and _selected(spec, asked):
            chats.append(answered(question(asked, system=spec.system), said))
    return chats


def _from_chats(spec: DataSpec) -> list[Chat]:
    chats: list[Chat] = []
    for place, row in raw_rows(spec.source).items():
        parts = [row.get("prompt"), row.get("completion")]
        messages = [message for part in parts if isinstance(part, list) for message in part]
        if not all(isinstance(part, list) for part in parts) or not all(map(_is_message, messages)):
            raise DataError(
                f"{place}: needs prompt and completion, lists of {{role, content}} messages"
            )
        if not parts[0] or not messages or not messages[-1]["content"].strip():
            raise DataError(f"{place}: the prompt or the completion is empty")
        if messages[-1]["role"] != "assistant":
            raise DataError(f"{place}: the completion must end with a message of the assistant")
        if _selected(spec, json.dumps(parts[0])):
            chats.append(messages)
    return chats


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(
        isinstance(message.get(key), str) for key in ("role", "content")
    )


def _selected(spec: DataSpec, text: str) -> bool:
    return spec.part == "all" or part_of(text, spec.held_out) == spec.part


_READERS: dict[str, Callable[[DataSpec], list[Chat]]] = {
    "statements": _from_statements,
    "big5chat": _from_big5chat,
    "chats": _from_chats,
}
