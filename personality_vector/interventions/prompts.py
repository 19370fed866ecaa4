"""Prompts: a system message by a portrait, by adjectives, by roles, or in the user's own words."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field

from personality_vector.data.adjectives import ADJECTIVES
from personality_vector.errors import DataError, RecipeError, TraitError, some
from personality_vector.interventions.portraits import PORTRAITS
from personality_vector.interventions.spec import SEED, InterventionSpec, Usual, require_step
from personality_vector.recipes.schema import PoleField, Whole, Words, distinct, located
from personality_vector.traits import Pole

if TYPE_CHECKING:
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.subject.chat import Chat, Message
    from personality_vector.subject.subject import Subject


class SystemMessage(Usual, ABC):
    """An intervention whose strengths are steps: each picks one text, and none lies in between.

    Attributes:
        label: Name in tables and figures.
        steps: The strengths; 0 is no message.
    """

    __slots__ = ()
    label: str
    steps: ClassVar[tuple[float, ...]] = (0.0, 1.0)

    @abstractmethod
    def text_at(self, step: int) -> str:
        """Return the system message of a step other than 0."""

    def sentence(self, strength: float) -> str:
        """Return the system message of a strength; "" at 0.

        Raises:
            RecipeError: There is no such step.
            NonFiniteError: The strength is NaN or infinite.
        """
        require_step(self, strength)
        return self.text_at(int(strength)) if strength else ""

    @contextmanager
    def applied(self, subject: "Subject", strength: float) -> Generator["Subject"]:
        """Put the text in front of the system message of every chat, or make one of it.

        Raises:
            RecipeError: There is no such step.
            NonFiniteError: The strength is NaN or infinite.
        """
        sentence = self.sentence(strength)
        yield edited(subject, partial(_instructed, sentence)) if sentence else subject


def edited(subject: "Subject", edit: Callable[["Chat"], "Chat"]) -> "Subject":
    """Return the subject with one more edit of its chats, made after those that it has."""
    earlier = subject.edit
    return replace(subject, edit=lambda chat: edit(earlier(chat)))


def enumerated(words: list[str]) -> str:
    """Return ``a, b and c``.

    >>> enumerated(["a", "b", "c"]), enumerated(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def _instructed(sentence: str, chat: "Chat") -> "Chat":
    if chat and chat[0]["role"] == "system":
        first: Message = {**chat[0], "content": f"{sentence} {chat[0]['content']}"}
        return [first, *chat[1:]]
    return [{"role": "system", "content": sentence}, *chat]


@dataclass(frozen=True, slots=True)
class Portrait(SystemMessage):
    """A system message that describes a person of one pole, as if to their face.

    Strength 1 is the portrait of the pole, -1 that of the opposite pole, 0 none.

    Attributes:
        pole: One of the ten of the Big Five.
        label: Defaults to the pole.

    Raises:
        TraitError: The pole has no portrait.

    Source:
        The form is that of P2, Jiang et al. 2023, arXiv:2206.07550: a second-person description
        that touches on six facets of the trait. Deviation: our own texts, fixed, where they let
        a model write them from key words; none holds the name of its trait.
    """

    pole: Pole
    label: str = ""
    steps: ClassVar[tuple[float, ...]] = (-1.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or f"portrait {self.pole}")
        if self.pole not in PORTRAITS:
            raise TraitError(
                f"{self.pole} has no portrait; there is one for each pole of "
                f"{some({pole.trait for pole in PORTRAITS}, 5)}"
            )

    def text_at(self, step: int) -> str:
        """Return the portrait of the pole, or of its opposite below 0."""
        return PORTRAITS[self.pole if step > 0 else self.pole.opposite]


class PortraitSpec(InterventionSpec):
    """``portrait`` names the pole that is described."""

    portrait: PoleField

    def read(self, base: "Checkpoint") -> Portrait:  # noqa: ARG002
        """Return the portrait."""
        return Portrait(self.portrait, self.label)


_MODIFIERS = ("", "a bit ", "", "very ")
"""By the size of the step; step 0 writes no prompt."""


@dataclass(frozen=True, slots=True)
class Prompted(SystemMessage):
    """A system message that names a pole: ``You are very friendly, talkative and bold.``.

    Strengths are the whole numbers from -3 to 3: 1 is "a bit", 2 has no modifier, 3 is "very";
    below 0 it names the opposite pole.

    >>> Prompted(Pole.parse("neuroticism:high")).sentence(-1.0)
    'You are a bit relaxed, at ease and easygoing.'
    >>> Prompted(Pole.parse("neuroticism:high"), adjectives=2, seed=0).sentence(3.0)
    'You are very self-conscious and very irritable.'

    Attributes:
        pole: Of a trait that has adjectives.
        label: Defaults to the pole.
        adjectives: How many of them, at least 1; the source has 5.
        seed: Draws the adjectives at random, each under a modifier of its own, as the source
            does. Without it they are the first of the list, all under one modifier. The opposite
            pole has the opposite words.

    Raises:
        TraitError: The trait has no adjectives.
        RecipeError: It has not as many.

    Source:
        Adjectives and modifiers of Serapio-Garcia et al. 2023, arXiv:2307.00184, as the prompt
        baseline of Personality Vector, arXiv:2509.19727, has them: five random adjectives, each
        with its modifier, which here is ``adjectives=5`` and a seed. Deviations: our own sentence;
        an adjective that holds the trait's own name is left out, as there, but its opposite too.
    """

    pole: Pole
    label: str = ""
    adjectives: int = 3
    seed: int | None = None
    steps: ClassVar[tuple[float, ...]] = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or f"prompt {self.pole}")
        if self.pole.trait not in ADJECTIVES:
            raise TraitError(
                f"{self.pole.trait} has no adjectives to prompt with; "
                f"there are some for {some(ADJECTIVES, 5)}"
            )
        most = len(_pairs(self.pole.trait))
        if not 1 <= self.adjectives <= most:
            raise RecipeError(
                f"{self.label}: {self.pole.trait} has 1 to {most} adjectives to prompt with, "
                f"not {self.adjectives}"
            )

    def text_at(self, step: int) -> str:
        """Return the prompt of a step: one modifier for all words, or with a seed one for each."""
        words = self._words(self.pole if step > 0 else self.pole.opposite)
        modifier = _MODIFIERS[abs(step)]
        if self.seed is None:
            return f"You are {modifier}{enumerated(words)}."
        return f"You are {enumerated([f'{modifier}{word}' for word in words])}."

    def _words(self, pole: Pole) -> list[str]:
        pairs = _pairs(pole.trait)
        order = list(range(len(pairs)))
        if self.seed is not None:
            import torch

            from personality_vector.numeric.random import generator_for

            generator = generator_for(self.seed, f"adjectives of {pole.trait}")
            order = torch.randperm(len(pairs), generator=generator).tolist()
        return [pairs[place][pole.level == "high"] for place in order[: self.adjectives]]


def _pairs(trait: str) -> list[tuple[str, str]]:
    return [pair for pair in ADJECTIVES[trait] if trait[:5] not in pair[1]]


class PromptedSpec(InterventionSpec):
    """``prompt`` names a pole by so many ``adjectives``, which a ``seed`` draws."""

    prompt: PoleField
    adjectives: Whole = Field(default=3, ge=1)
    seed: Whole | None = None

    def read(self, base: "Checkpoint") -> Prompted:  # noqa: ARG002
        """Return the prompt."""
        return Prompted(self.prompt, self.label, self.adjectives, self.seed)


@dataclass(frozen=True, slots=True)
class RolePrompt(SystemMessage):
    """A system message that gives the model one role, or several whose views it has to join.

    Strength 1 is the prompt, 0 none.

    >>> RolePrompt(["a futurist"]).sentence(1.0)
    'You are a futurist. Answer as one.'

    Attributes:
        roles: Each a person, with an article: ``a futurist``.
        label: Defaults to the roles.

    Raises:
        DataError: There is no role, one is blank or given twice, or they are one text.

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
            raise DataError(f"{self.label}: names a role twice")

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

    def read(self, base: "Checkpoint") -> RolePrompt:  # noqa: ARG002
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
