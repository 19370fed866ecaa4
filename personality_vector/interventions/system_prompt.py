"""Interventions by words alone: a system prompt for each of a few strengths."""

from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from personality_vector.errors import RecipeError
from personality_vector.subject.chat import Chat, ChatEdit, Message
from personality_vector.subject.protocols import require_finite


class SystemPrompt(ABC):
    """An intervention whose strengths are steps: each picks one text, and none lies in between.

    Attributes:
        label: Name in tables and plots.
    """

    __slots__ = ()
    label: str

    @abstractmethod
    def sentence(self, strength: float) -> str:
        """Return the system prompt of a strength; "" where there is none, as at 0.

        Raises:
            RecipeError: There is no such step.
            NonFiniteError: The strength is NaN or infinite.
        """

    @contextmanager
    def applied(self, model: Any, strength: float) -> Generator[ChatEdit]:  # noqa: ARG002
        """Yield an edit that puts the text in front of the system message, or makes one.

        Raises:
            RecipeError: There is no such step.
            NonFiniteError: The strength is NaN or infinite.
        """
        sentence = self.sentence(strength)
        yield (lambda chat: _instructed(chat, sentence)) if sentence else identity


def require_step(label: str, strength: float, steps: tuple[int, ...]) -> None:
    """Check a strength that is one of a few whole numbers.

    Raises:
        RecipeError: It is another number.
        NonFiniteError: It is NaN or infinite.
    """
    require_finite(label, strength)
    if strength not in steps:
        listed = f"{', '.join(map(str, steps[:-1]))} and {steps[-1]}"
        raise RecipeError(f"{label}: has the strengths {listed}, got {strength}")


def enumerated(words: list[str]) -> str:
    """Return ``a, b and c``.

    >>> enumerated(["a", "b", "c"]), enumerated(["a"])
    ('a, b and c', 'a')
    """
    return " and ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)


def _instructed(chat: Chat, sentence: str) -> Chat:
    if chat and chat[0]["role"] == "system":
        first: Message = {**chat[0], "content": f"{sentence} {chat[0]['content']}"}
        return [first, *chat[1:]]
    return [{"role": "system", "content": sentence}, *chat]
