"""What goes over the wire to a server: a request, and what may come back for it."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from pydantic import BaseModel, Field

from personality_vector.subject.responses import Responses

_SLICE = 0.1
_LONGEST_WAIT = 3600.0
_TEMPLATE_TOKENS = 256  # more than what a chat template adds to a message

Messages = Sequence[Mapping[str, str]]
Stopped = Callable[[], bool]


class PassingError(Exception):
    """A failure that another try may mend, perhaps not before ``wait`` seconds.

    It ``is_free`` if the server did no work. With a ``remedy`` it is one of the server and not of
    the request, and ends all requests unless another try mends it.
    """

    def __init__(
        self, reason: str, wait: float = 0.0, remedy: str = "", *, is_free: bool = False
    ) -> None:
        super().__init__(reason)
        self.wait, self.remedy, self.is_free = wait, remedy, is_free or bool(remedy)


class _Token(BaseModel):
    token: str
    logprob: float = Field(allow_inf_nan=False)


class _FirstToken(BaseModel):
    top_logprobs: list[_Token] | None = None


class _Logprobs(BaseModel):
    content: list[_FirstToken] | None = None


class _Message(BaseModel):
    content: str | None = None
    refusal: str | None = None


class Choice(BaseModel):
    """One reply of a completion, as far as it is read."""

    finish_reason: str | None = None
    message: _Message
    logprobs: _Logprobs | None = None


class _Usage(BaseModel):
    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)


class Completion(BaseModel):
    """The body of a response, as far as it is read."""

    choices: list[Choice] = Field(min_length=1)
    usage: _Usage | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A chat, how it is asked, and what becomes of the answer.

    Attributes:
        messages: The chat.
        options: Those of the API.
        read: Makes of a choice what is returned, and kept.
        kept: The file of responses; without it nothing is kept or counted.
        key: What the response is kept under.
        is_stopped: Whether nothing more is to be sent.
    """

    messages: Messages
    options: Mapping[str, Any]
    read: Callable[["Choice"], Any]
    kept: Responses | None = None
    key: str = ""
    is_stopped: Stopped = lambda: False

    @property
    def most(self) -> tuple[int, int]:
        """The most tokens that it can read and write: a token has at least one byte."""
        read = sum(len(text.encode()) for message in self.messages for text in message.values())
        return read + _TEMPLATE_TOKENS, int(self.options.get("max_tokens", 0))


def retry_after(headers: Mapping[str, str]) -> float:
    """Return the seconds that a server asks to be left alone, given as a number or as a date.

    At most an hour.
    """
    said, seconds = headers.get("retry-after", ""), 0.0
    try:
        seconds = float(said)
    except ValueError:
        with suppress(ValueError, TypeError):
            seconds = parsedate_to_datetime(said).timestamp() - time.time()
    return min(max(0.0, seconds), _LONGEST_WAIT)


def wait(seconds: float, is_stopped: Stopped) -> None:
    """Wait in small pieces, and no longer once everything is stopped."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not is_stopped():
        time.sleep(min(left, _SLICE))
