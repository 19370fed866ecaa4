"""Chats: messages with roles, and the text that a model reads."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from personality_vector.errors import DataError, foreign
from personality_vector.subject.templates import require_bounded

Message = Mapping[str, str]
Chat = Sequence[Message]
ChatEdit = Callable[[Chat], Chat]
"""What an intervention does to a chat before the model reads it, such as adding a prompt."""
T = TypeVar("T")
_tried = set[str]()
"""Templates that have been rendered within bounds."""


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
    if tokenizer.chat_template is None:
        raise DataError(f"{tokenizer.name_or_path}: the tokenizer has no chat template")
    roles = ", ".join(message["role"] for message in chat)
    with foreign(DataError, f"the chat template refuses a chat of {roles}"):
        rendered = partial(
            tokenizer.apply_chat_template,
            list(chat),
            tokenize=False,
            add_generation_prompt=reply_follows,
        )
        template = str(tokenizer.chat_template)
        if template not in _tried:
            require_bounded(rendered)
            _tried.add(template)
        return str(rendered())
