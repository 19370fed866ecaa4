"""Few-shot prompting: earlier turns in which the assistant answers as it should."""

from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BeforeValidator, ValidationError

from personality_vector.data.chats import DataSpec
from personality_vector.errors import DataError
from personality_vector.interventions.prompts import edited
from personality_vector.interventions.spec import InterventionSpec, Usual, require_step
from personality_vector.recipes.schema import Recipe, Words, sentence

if TYPE_CHECKING:
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.subject.chat import Chat
    from personality_vector.subject.subject import Subject

R = TypeVar("R", bound=Recipe)


@dataclass(frozen=True, slots=True)
class FewShot(Usual):
    """Examples in front of every question; the strength is how many of them, from the first.

    They stand behind the system message, as if they had been said before.

    Attributes:
        examples: Chats of a user and the assistant, without a system message, each of which ends
            with what the assistant said.
        label: Name in tables and figures.
        files: Where they were read; their content is part of the identity.

    Raises:
        DataError: There is no example, or one has another form.

    Source:
        Brown et al. 2020, arXiv:2005.14165.
    """

    examples: "Sequence[Chat]"
    label: str = "few-shot"
    files: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", tuple(tuple(chat) for chat in self.examples))
        if not self.examples:
            raise DataError(f"{self.label}: there is no example")
        for number, chat in enumerate(self.examples, start=1):
            roles = [message["role"] for message in chat]
            if roles != ["user", "assistant"] * (len(roles) // 2) or not roles:
                raise DataError(
                    f"{self.label}: example {number} has the roles {', '.join(roles) or 'none'}; "
                    "it should be turns of user and assistant"
                )

    @property
    def steps(self) -> tuple[float, ...]:  # type: ignore[override]
        """From none to all of the examples."""
        return tuple(map(float, range(len(self.examples) + 1)))

    @contextmanager
    def applied(self, subject: "Subject", strength: float) -> Generator["Subject"]:
        """Put the first ``strength`` examples in front of the question of every chat.

        Raises:
            RecipeError: There are not so many, or the strength is no whole number.
            NonFiniteError: The strength is NaN or infinite.
        """
        require_step(self, strength)
        turns = [message for chat in self.examples[: int(strength)] for message in chat]
        yield edited(subject, lambda chat: _shown(turns, chat)) if turns else subject


def _shown(turns: "Chat", chat: "Chat") -> "Chat":
    opening = 1 if chat and chat[0]["role"] == "system" else 0
    return [*chat[:opening], *turns, *chat[opening:]]


class Shot(Recipe):
    """One example, written into the recipe."""

    user: Words
    assistant: Words


def _by_form(value: Any, info: Any) -> Any:
    """Return a mapping as a data file, and a list as examples, each by its own schema."""
    if isinstance(value, Mapping):
        return _parsed(DataSpec, value, info)
    if isinstance(value, list | tuple) and value:
        return tuple(_parsed(Shot, each, info) for each in value)
    raise ValueError("give a list of {user, assistant}, at least one, or a data file with source")


def _parsed(schema: type[R], value: Any, info: Any) -> R:
    try:
        return schema.model_validate(value, context=info.context)
    except ValidationError as error:
        raise ValueError(sentence(schema, error)) from error


class ExamplesSpec(InterventionSpec):
    """``examples`` are a list of ``{user, assistant}``, or a data file as for training."""

    examples: Annotated[DataSpec | tuple[Shot, ...], BeforeValidator(_by_form)]

    def read(self, base: "Checkpoint") -> FewShot:  # noqa: ARG002
        """Return the examples."""
        from personality_vector.data.chats import read_chats
        from personality_vector.subject.chat import answered, question

        if isinstance(self.examples, DataSpec):
            return FewShot(read_chats(self.examples), self.label, (self.examples.source,))
        shots = [answered(question(shot.user), shot.assistant) for shot in self.examples]
        return FewShot(shots, self.label)
