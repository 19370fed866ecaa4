"""Interventions by words alone: a system message for each of a few strengths."""

from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from personality_vector.interventions.spec import require_step
from personality_vector.subject.identity import identity_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from personality_vector.checkpoint import Checkpoint
    from personality_vector.subject.chat import Chat, Message
    from personality_vector.subject.subject import Subject


class SystemMessage(ABC):
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

    def identity(self) -> str:
        """Return the digest of its options."""
        return identity_of(self)

    def check(self, base: "Checkpoint") -> None:  # noqa: B027  (there is nothing to refuse)
        """Accept every base: words go with all of them."""

    @contextmanager
    def applied(self, subject: "Subject", strength: float) -> "Generator[Subject]":
        """Put the text in front of the system message of every chat, or make one of it.

        Raises:
            RecipeError: There is no such step.
            NonFiniteError: The strength is NaN or infinite.
        """
        sentence = self.sentence(strength)
        yield edited(subject, partial(_instructed, sentence)) if sentence else subject


def edited(subject: "Subject", edit: "Callable[[Chat], Chat]") -> "Subject":
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
