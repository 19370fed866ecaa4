"""The user's own words as a system message."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from personality_vector.errors import DataError
from personality_vector.interventions.spec import SEED, InterventionSpec
from personality_vector.interventions.system_message import SystemMessage
from personality_vector.recipes.paths import located

if TYPE_CHECKING:
    from personality_vector.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class SystemPrompt(SystemMessage):
    """A text of the user's own as the system message; strength 1 is the text, 0 none.

    >>> SystemPrompt("You are the life of the party.").sentence(1.0)
    'You are the life of the party.'

    Attributes:
        text: Comes before the system message of a chat that has one.
        label: Name in tables and figures.

    Raises:
        DataError: The text is blank.
    """

    text: str
    label: str = "system prompt"

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise DataError(f"{self.label}: the system prompt is blank")

    def text_at(self, step: int) -> str:  # noqa: ARG002
        """Return the text."""
        return self.text


def _text_or_file(value: Any, info: Any) -> Any:
    """Return the path of a text file, if there is one of that name, else the text itself."""
    try:
        # Without a recipe's folder a relative path would mean another file in every folder.
        if isinstance(value, str) and (info.context or Path(value).is_absolute()):
            file = located(value, info)
            return file if file.is_file() else value
    except (OSError, RuntimeError, ValueError):  # longer than a path can be, ~nobody, a null byte
        pass
    return value


def _without_seed(value: Path | str) -> Path | str:
    if SEED in str(value):
        raise ValueError(f"neither the text nor the name of its file can hold {SEED}")
    return value


class SystemSpec(InterventionSpec):
    """``system`` is the text, or the path of a text file, whose surrounding space is cut off."""

    system: Annotated[Path | str, BeforeValidator(_text_or_file), AfterValidator(_without_seed)]

    def read(self, base: "Checkpoint") -> SystemPrompt:  # noqa: ARG002
        """Return the prompt."""
        return SystemPrompt(_content_of(self.system), self.label)


def _content_of(system: Path | str) -> str:
    if isinstance(system, str):
        return system
    try:
        return system.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{system}: cannot be read: {error}") from error
