"""Chats: messages with roles, and the text that a model reads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from personality_vector.errors import DataError, foreign
from personality_vector.subject.spec import EXAMPLE
from personality_vector.subject.templates import adapted, manner_of

Message = Mapping[str, str]
Chat = Sequence[Message]
ChatEdit = Callable[[Chat], Chat]
"""What an intervention does to a chat before the model reads it, such as adding a prompt."""
T = TypeVar("T")


def question(text: str, *, system: str | None = None) -> list[Message]:
    """Return a chat of one user message, after a system message if there is one."""
    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": text}]


def unchanged(chat: Chat) -> Chat:
    """Return ``chat`` itself, for interventions that change weights or activations."""
    return chat


def answered(chat: Chat, reply: str) -> list[Message]:
    """Return ``chat`` followed by the assistant's ``reply``."""
    return [*chat, {"role": "assistant", "content": reply}]


def batched(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield ``items`` in order, ``size`` at a time.

    Raises:
        DataError: ``size`` is not positive.
    """
    if size < 1:
        raise DataError(f"a batch needs a size of at least 1, got {size}")
    for start in range(0, len(items), size):
        yield items[start : start + size]


def render(tokenizer: Any, chat: Chat, *, reply_follows: bool = False) -> str:
    """Return ``chat`` as the text that the model reads.

    Raises:
        DataError: The tokenizer has no chat template, or its template refuses the chat.
    """
    shown = fitted(tokenizer, chat, reply_follows=reply_follows)
    with foreign(DataError, _refused(chat)):
        return str(
            tokenizer.apply_chat_template(
                shown, tokenize=False, add_generation_prompt=reply_follows
            )
        )


def fitted(tokenizer: Any, chat: Chat, *, reply_follows: bool = False) -> list[Mapping[str, Any]]:
    """Return ``chat`` as the tokenizer's template can show it.

    The text of a system message moves into the user's turn where there is no system role, and
    contents are lists of parts where the template wants these.

    Raises:
        DataError: The tokenizer has no chat template, or its template takes too much time or memory
            or shows no question.
    """
    if tokenizer.chat_template is None:
        raise DataError(
            f"{tokenizer.name_or_path}: the tokenizer has no chat template; give a file or the "
            f"text of one, such as chat_template: {EXAMPLE}"
        )
    with foreign(DataError, _refused(chat)):
        return adapted(chat, manner_of(tokenizer, chat, reply_follows=reply_follows))


def _refused(chat: Chat) -> str:
    roles = ", ".join(message["role"] for message in chat)
    return f"the chat template refuses a chat of {roles}"
