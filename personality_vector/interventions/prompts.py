"""Prompts in the user's own words: a system message, roles, and earlier turns as examples."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field

from personality_vector.data.chats import DataSpec, read_chats
from personality_vector.data.personas import InstructionPair, open_persona
from personality_vector.errors import DataError, RecipeError
from personality_vector.files.reading import read_text
from personality_vector.interventions.spec import (
    SEED,
    BaseIntervention,
    InterventionSpec,
    enumerated,
    require_step,
)
from personality_vector.recipes.schema import (
    LocalPath,
    PoleField,
    Recipe,
    Whole,
    Words,
    distinct,
    located,
)
from personality_vector.subject import Chat, Checkpoint, Message, Subject, answered, question


class SystemMessage(BaseIntervention, ABC):
    """An intervention whose strengths are steps, each with a text of its own.

    Attributes:
        label: Name in tables and figures.
        steps: The strengths; 0 adds no message.
    """

    label: str
    steps: ClassVar[tuple[float, ...]] = (0.0, 1.0)

    @abstractmethod
    def text_at(self, step: int) -> str:
        """Return the system message of a step other than 0."""

    def sentence(self, strength: float) -> str:
        """Return the system message of a strength; "" at 0.

        Raises:
            RecipeError: It does not have this step.
            NonFiniteError: The strength is NaN or infinite.
        """
        require_step(self, strength)
        return self.text_at(int(strength)) if strength else ""

    @contextmanager
    def applied(self, subject: Subject, strength: float) -> Generator[Subject]:
        """Put the text before the system message of every chat, or make it the system message.

        Raises:
            RecipeError: It does not have this step.
            NonFiniteError: The strength is NaN or infinite.
        """
        sentence = self.sentence(strength)
        yield edited(subject, partial(instructed, sentence)) if sentence else subject


def edited(subject: Subject, edit: Callable[[Chat], Chat]) -> Subject:
    """Return the subject with one more edit of its chats, made after those that it has."""
    return replace(subject, edit=lambda chat: edit(subject.edit(chat)))


def instructed(sentence: str, chat: Chat) -> Chat:
    """Return a chat with a text before its system message, or as its system message."""
    if chat and chat[0]["role"] == "system":
        first: Message = {**chat[0], "content": f"{sentence} {chat[0]['content']}"}
        return [first, *chat[1:]]
    return [{"role": "system", "content": sentence}, *chat]


@dataclass(frozen=True, slots=True)
class RolePrompt(SystemMessage):
    """A system message that gives the model one role, or several roles whose views it combines.

    Strength 1 is the prompt, 0 none.

    >>> RolePrompt(["a futurist"]).sentence(1.0)
    'You are a futurist. Answer as one.'

    Attributes:
        roles: Each a person, with an article: ``a futurist``.
        label: Defaults to the roles.

    Raises:
        DataError: No role is given, one is blank or given twice, or the roles are a single text.

    Source:
        With several roles, multi-role prompting as BILLY has it for a baseline, arXiv:2510.10157:
        one call, in which one model takes every view and answers once. Deviation: our own words.
    """

    roles: Sequence[str]
    label: str = ""

    def __post_init__(self) -> None:
        if isinstance(self.roles, str):
            raise DataError(f"roles are a list, such as [{self.roles!r}]")
        object.__setattr__(self, "roles", tuple(self.roles))
        object.__setattr__(self, "label", self.label or f"roles {' + '.join(self.roles)}")
        if not self.roles or not all(role.strip() for role in self.roles):
            raise DataError(f"{self.label}: name at least one role, such as a futurist")
        if len(set(self.roles)) < len(self.roles):
            raise DataError(f"{self.label}: names a role twice; name each once")

    def text_at(self, step: int) -> str:  # noqa: ARG002
        """Return the prompt."""
        if len(self.roles) == 1:
            return f"You are {self.roles[0]}. Answer as one."
        return (
            f"Before you answer, look at the matter in turn as {enumerated(list(self.roles))} "
            "would, and note what only that person would see. Then give one answer that joins "
            "these views. Speak with one voice, and do not mention the roles."
        )


class RolesSpec(InterventionSpec):
    """``roles`` are persons such as ``a futurist``."""

    roles: Annotated[tuple[Words, ...], Field(min_length=1), AfterValidator(distinct)]

    def open(self, base: Checkpoint) -> RolePrompt:  # noqa: ARG002
        """Return the prompt."""
        return RolePrompt(self.roles, self.label)


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
            raise DataError(f"{self.label}: the system prompt is blank; write a text")

    def text_at(self, step: int) -> str:  # noqa: ARG002
        """Return the text."""
        return self.text


@dataclass(frozen=True, slots=True)
class PersonaPrompt(SystemMessage):
    """The system prompt of a persona that also elicits its chats; -1 is that of its opposite.

    Attributes:
        pair: The two prompts.
        label: Name in tables and figures.
    """

    pair: InstructionPair
    label: str = "persona prompt"
    steps: ClassVar[tuple[float, ...]] = (-1.0, 0.0, 1.0)

    def text_at(self, step: int) -> str:
        """Return the prompt of a side."""
        return self.pair.positive if step > 0 else self.pair.negative


class PersonaSpec(InterventionSpec):
    """``persona`` is a file or a folder of elicited chats; ``pair`` counts its prompts from 0."""

    persona: LocalPath
    pole: PoleField | None = None
    pair: Whole = Field(default=0, ge=0)

    def open(self, base: Checkpoint) -> PersonaPrompt:  # noqa: ARG002
        """Return the prompt.

        Raises:
            RecipeError: It is not a persona, or has fewer pairs.
        """
        pairs = open_persona(self.persona, self.pole).instructions
        if self.pair >= len(pairs):
            raise RecipeError(
                f"{self.label}: pair {self.pair} of {self.persona}, which has pairs 0 to "
                f"{len(pairs) - 1}"
            )
        return PersonaPrompt(pairs[self.pair], self.label)


# One word with such an ending is meant as a file, even if there is none.
_ENDINGS = (".txt", ".md", ".yaml", ".yml", ".jinja")


def _text_or_file(value: Any, info: Any) -> Any:
    """Return the path of a text file, if there is one or one is meant, else the text itself."""
    # Too long for a path, ~nobody, a null byte: none of these names a file.
    with suppress(OSError, RuntimeError, ValueError):
        # Without a recipe's folder a relative path would mean another file in every folder.
        if isinstance(value, str) and (info.context or Path(value).is_absolute()):
            file = located(value, info)
            is_meant = file.suffix in _ENDINGS and len(value.split()) == 1
            return file if is_meant or file.is_file() else value
    return value


def _without_seed(value: Path | str) -> Path | str:
    if SEED in str(value):
        raise ValueError(f"neither the text nor the name of its file may contain {SEED}")
    return value


class SystemSpec(InterventionSpec):
    """``system`` is the text, or the path of a text file, read without surrounding white space."""

    system: Annotated[Path | str, BeforeValidator(_text_or_file), AfterValidator(_without_seed)]

    def open(self, base: Checkpoint) -> SystemPrompt:  # noqa: ARG002
        """Return the prompt.

        Raises:
            DataError: The file cannot be read, or the text is blank.
        """
        if isinstance(self.system, str):
            return SystemPrompt(self.system, self.label)
        try:
            text = read_text(self.system).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.system}: cannot be read: {error}") from error
        return SystemPrompt(text, self.label)


@dataclass(frozen=True, slots=True)
class FewShot(BaseIntervention):
    """Examples before every question; the strength is how many of them, from the first.

    They follow the system message, as earlier turns of the chat.

    Attributes:
        examples: Chats of a user and the assistant, without a system message, each of which ends
            with what the assistant said.
        label: Name in tables and figures.
        files: Where they were read; their content is part of the identity.

    Raises:
        DataError: There is no example, or one does not have this form.

    Source:
        Brown et al. 2020, arXiv:2005.14165.
    """

    examples: Sequence[Chat]
    label: str = "few-shot"
    files: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", tuple(tuple(chat) for chat in self.examples))
        if not self.examples:
            raise DataError(f"{self.label}: no example is given; give at least one")
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
    def applied(self, subject: Subject, strength: float) -> Generator[Subject]:
        """Put the first ``strength`` examples before the question of every chat.

        Raises:
            RecipeError: There are fewer examples, or the strength is not a whole number.
            NonFiniteError: The strength is NaN or infinite.
        """
        require_step(self, strength)
        turns = [message for chat in self.examples[: int(strength)] for message in chat]
        yield edited(subject, lambda chat: _shown(turns, chat)) if turns else subject


def _shown(turns: Chat, chat: Chat) -> Chat:
    opening = 1 if chat and chat[0]["role"] == "system" else 0
    return [*chat[:opening], *turns, *chat[opening:]]


class Shot(Recipe):
    """One example, written into the recipe."""

    user: Words
    assistant: Words


def _by_form(value: Any, info: Any) -> Any:
    """Return a mapping as a data file, and a list as examples, each by its own schema."""
    folder: Any = (info.context or {}).get("folder")
    if isinstance(value, Mapping):
        return DataSpec.parse(value, origin="examples", folder=folder)
    if isinstance(value, list | tuple) and value:
        return tuple(Shot.parse(each, origin="examples", folder=folder) for each in value)
    raise ValueError("give a list of {user, assistant}, at least one, or a data file with source")


class ExamplesSpec(InterventionSpec):
    """``examples`` are a list of ``{user, assistant}``, or a data file as for training."""

    examples: Annotated[DataSpec | tuple[Shot, ...], BeforeValidator(_by_form)]

    def open(self, base: Checkpoint) -> FewShot:  # noqa: ARG002
        """Return the examples."""
        if isinstance(self.examples, DataSpec):
            source = self.examples.source
            files = (source,) if isinstance(source, Path) else ()
            return FewShot(read_chats(self.examples), self.label, files)
        return FewShot(
            [answered(question(shot.user), shot.assistant) for shot in self.examples], self.label
        )
