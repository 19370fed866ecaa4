"""A model behind an OpenAI-compatible server: its replies and its token probabilities."""

import math
import os
import random
import re
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, NoReturn

from pydantic import ValidationError

from personality_vector.errors import ModelError, RecipeError, foreign, redacted
from personality_vector.files.reading import parse_json
from personality_vector.subject.identity import digest_of
from personality_vector.subject.responses import Prices, Responses
from personality_vector.subject.wire import (
    Choice,
    Completion,
    Messages,
    PassingError,
    Request,
    Stopped,
    retry_after,
    wait,
)

_TOP = 20  # the most that OpenAI returns, and what persona vectors asks for
_NO_KEY = "no-key"  # the library insists on one; a local server does not look at it
_SHORTEST_KEY = 8  # a shorter one, such as EMPTY, is no secret and could be a token of a reply
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0
_MOST_BYTES, _LONGEST, _SHORT = 1 << 24, 400, 80

# Statuses that another try may mend; all from 500 on are like them.
_PASSING = {
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.CONFLICT,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
}
_REMEDIES = {
    HTTPStatus.UNAUTHORIZED: "; set the right key in {env}",
    HTTPStatus.FORBIDDEN: "; set a key in {env} that may use this model",
    HTTPStatus.NOT_FOUND: "; check the name of the model, and base_url, which often ends in /v1",
    HTTPStatus.PAYMENT_REQUIRED: "; top up the account",
}
_NO_CREDIT = ("insufficient_quota",)
# Codes of a request that the server would refuse every time, while it takes others.
_OF_ONE_PROMPT = ("context_length_exceeded", "content_filter")
_TOO_LONG = re.compile(r"context (length|size|window)|too (long|large|many tokens)", re.IGNORECASE)


class UnansweredError(ModelError):
    """A request that got no usable answer; the others may."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long, how often, how fast and for how much a server is asked.

    Attributes:
        timeout: Seconds until an answer must be complete.
        retries: Further tries after a failure that may pass.
        per_minute: Requests that may begin in a minute; ``None`` sets no limit.
        prices: What tokens cost.
        account: Who pays: a budget is that of an account.
    """

    timeout: float = 600.0
    retries: int = 5
    per_minute: int | None = None
    prices: Prices = field(default_factory=Prices)
    account: str = ""


class Endpoint:
    """A chat model of a server; safe to use from several threads.

    Until one request has been answered, requests are sent one at a time; after a failure that no
    other try mends, none is sent.

    Args:
        model: Its name on the server.
        base_url: Such as ``http://localhost:8000/v1``; ``None`` is OpenAI's own.
        api_key_env: Environment variable that holds the key. A server of one's own may need none.
        limits: How it is asked.

    Raises:
        RecipeError: The package ``openai`` is not installed, or the variable is not set.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        api_key_env: str = "OPENAI_API_KEY",
        limits: Limits | None = None,
    ) -> None:
        self.model, self.limits = model, limits or Limits()
        self.where = redacted(f"{model} at {base_url or 'api.openai.com'}")
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise RecipeError(
                f"{self.where}: base_url must begin with http:// or https://, such as "
                "http://localhost:8000/v1"
            )
        try:
            import openai
        except ImportError as error:
            raise RecipeError(
                "an endpoint needs the package openai: pip install 'personality-vector[endpoint]'"
            ) from error
        key = os.environ.get(api_key_env, "").strip()
        if not key.isascii() or not key.isprintable() or " " in key:
            raise RecipeError(
                f"the environment variable {api_key_env} holds more than an API key, such as a "
                "blank or an accent; set it again"
            )
        if not key and base_url is None:
            raise RecipeError(
                f"the environment variable {api_key_env} is not set; it holds the API key"
            )
        self._openai, self._key_name, self._server = openai, api_key_env, base_url
        with foreign(RecipeError, f"{self.where}: cannot be asked"):
            self._client = openai.OpenAI(
                api_key=key or _NO_KEY,
                base_url=base_url,
                max_retries=0,
                timeout=self.limits.timeout,
            )
        self._has_secret = len(self._client.api_key) >= _SHORTEST_KEY
        self._first, self._pace = threading.Lock(), threading.Lock()
        self._is_open, self._is_answered, self._next_start = False, False, 0.0
        self._refusal: str | None = None

    def first_token(
        self,
        messages: Messages,
        kept: Responses | None = None,
        is_stopped: Stopped = lambda: False,
    ) -> dict[str, float]:
        """Return the probabilities of the 20 likeliest first tokens of a reply.

        At temperature 0 with seed 0. The probabilities of tokens with the same text are added up.

        Args:
            messages: The chat.
            kept: Earlier responses, which are not asked for again.
            is_stopped: Whether nothing more is to be sent.

        Raises:
            UnansweredError: This request has no usable answer.
            ModelError: The server fails, does not return log-probabilities, or the budget is used
                up.
        """
        options = {
            "max_tokens": 1,
            "temperature": 0,
            "seed": 0,
            "logprobs": True,
            "top_logprobs": _TOP,
        }
        key = digest_of(self.model, self._server, messages, options)
        found = kept.get(key) if kept is not None else None
        if found is None:
            read = self._first_token_of
            found = self._asked(Request(messages, options, read, kept, key, is_stopped))
        if "reason" in found:
            raise UnansweredError(found["reason"])
        return dict(found["likely"])

    def write(self, messages: Messages, name: str, schema: Mapping[str, Any]) -> str:
        """Return a reply that the server was told to fit to a JSON ``schema``.

        Raises:
            ModelError: The server fails, or the reply was refused or cut off.
        """
        form = {"name": name, "strict": True, "schema": dict(schema)}
        options = {"response_format": {"type": "json_schema", "json_schema": form}}
        try:
            choice: Choice = self._asked(Request(messages, options, lambda choice: choice))
        except UnansweredError as error:
            raise ModelError(f"{self.where}: {error}") from None
        if choice.finish_reason == "length" or not choice.message.content:
            why = choice.message.refusal or f"it ended by {choice.finish_reason}"
            raise ModelError(f"{self.where}: wrote no complete reply: {self._safe(why)}")
        return choice.message.content

    def _first_token_of(self, choice: Choice) -> dict[str, Any]:
        """Return what is kept of a reply: its likeliest tokens, or the reason for none."""
        content = choice.logprobs.content if choice.logprobs else None
        if choice.message.refusal or choice.finish_reason == "content_filter":
            said = choice.message.refusal or "its filter stopped the reply"
            return {"reason": self._safe(f"the judge refused: {said}")}
        if content == [] and not choice.message.content:
            return {"reason": "the judge said nothing"}
        if not content or not content[0].top_logprobs:
            if self._is_answered:
                raise PassingError("it returned no log-probabilities this time")
            self._stop(
                "returns no log-probabilities, which a judge needs; "
                "choose a model and server that return top_logprobs"
            )
        likely: dict[str, float] = {}
        for token in content[0].top_logprobs:
            text = self._safe(token.token) if self._has_secret else token.token
            likely[text] = likely.get(text, 0.0) + math.exp(min(token.logprob, 0.0))
        return {"likely": likely}

    def _asked(self, request: Request) -> Any:
        """Send a request until it has an answer, and return what is made of that.

        Raises:
            UnansweredError: It has none after all tries.
            ModelError: No other try would mend the failure, or the budget is used up.
        """
        reason, remedy, tries = "", "", self.limits.retries + 1
        with self._alone():
            for number in range(tries):
                self._wait_for_turn(request)
                try:
                    return self._sent(request)
                except PassingError as failure:
                    reason, least, remedy = str(failure), failure.wait, failure.remedy
                if number + 1 < tries:
                    pause = min(_FIRST_PAUSE * 2**number, _LONGEST_PAUSE)
                    wait(max(least, pause * random.uniform(0.5, 1.5)), request.is_stopped)
        if remedy:
            self._stop(reason + remedy)
        times = "once" if tries == 1 else f"{tries} times"
        raise UnansweredError(f"no answer though the server was asked {times}: {reason}")

    @contextmanager
    def _alone(self) -> Generator[None]:
        """Hold back all others until the first request has ended."""
        with self._first:
            if not self._is_open:
                try:
                    yield
                finally:
                    self._is_open = True
                return
        yield

    def _wait_for_turn(self, request: Request) -> None:
        if self.limits.per_minute is not None:
            with self._pace:
                start = max(self._next_start, time.monotonic())
                self._next_start = start + 60.0 / self.limits.per_minute
            wait(start - time.monotonic(), request.is_stopped)
        if self._refusal is not None:
            raise ModelError(self._refusal)
        if request.is_stopped():
            raise ModelError(f"{self.where}: is not asked any more")

    def _sent(self, request: Request) -> Any:
        """Send a request once; the account is charged unless the server refused it."""
        limits, kept, usage, keep = self.limits, request.kept, None, None
        charge = 0 if kept is None else kept.begin(limits.account, request.most, limits.prices)
        try:
            text = self._text(request)
            try:
                completion = Completion.model_validate(parse_json(text))
            except (ValidationError, ValueError) as error:
                shown = self._line(text)[:_SHORT]
                raise PassingError(f"its response is not a completion: {shown!r}") from error
            if completion.usage is not None:
                usage = (completion.usage.prompt_tokens, completion.usage.completion_tokens)
            found = request.read(completion.choices[0])
            self._is_answered, keep = True, (request.key, found)
            return found
        except PassingError as failure:
            usage = usage or ((0, 0) if failure.is_free else None)
            raise
        except ModelError:
            usage = usage or (0, 0)
            raise
        finally:
            if kept is not None:
                kept.end(charge, usage, keep)

    def _text(self, request: Request) -> str:
        """Return the body of a response."""
        create = self._client.chat.completions.with_streaming_response.create
        chat: Any = [dict(message) for message in request.messages]
        end = time.monotonic() + self.limits.timeout
        try:
            with create(model=self.model, messages=chat, **request.options) as response:
                body = bytearray()
                for chunk in response.iter_bytes():
                    body += chunk
                    if time.monotonic() > end:
                        raise TimeoutError
                    if len(body) > _MOST_BYTES:
                        raise PassingError("its response does not end")
                return body.decode(errors="replace")
        except self._openai.APIStatusError as error:
            self._refused(error)
        except (self._openai.OpenAIError, OSError) as error:
            raise self._failed(error) from None
        except Exception as error:
            # The transport of the library, whose package may change with its version.
            if not type(error).__module__.startswith("http"):
                raise
            raise self._failed(error) from None

    def _failed(self, error: Exception) -> Exception:
        """Return what a failure without a response means."""
        if "Timeout" in type(error).__name__:
            return PassingError(f"it did not answer within {self.limits.timeout:g} seconds")
        cause = error.__cause__ or error
        if type(cause).__name__ == "ConnectError":
            said = f"cannot be reached ({self._line(cause)})"
            return PassingError(said, remedy="; start the server, or check base_url")
        theirs, broken = self._openai.OpenAIError, self._openai.APIConnectionError
        if isinstance(error, theirs) and not isinstance(error, broken):
            return ModelError(f"{self.where}: {self._line(error)}")
        return PassingError(f"the connection broke ({self._line(cause)})")

    def _refused(self, error: Any) -> NoReturn:
        """Raise what a response with an error status means."""
        status, code = error.status_code, getattr(error, "code", None)
        told = error.body.get("message") if isinstance(error.body, dict) else None
        said = f"it answered {status}: {self._line(told or error)}"
        if code not in _NO_CREDIT and (status in _PASSING or status >= 500):
            raise PassingError(said, retry_after(error.response.headers), is_free=True) from None
        is_general = code in _NO_CREDIT or status in _REMEDIES
        is_of_prompt = code in _OF_ONE_PROMPT or self._is_answered or _TOO_LONG.search(said)
        if is_of_prompt and not is_general:
            raise UnansweredError(said) from None
        self._stop(said.removeprefix("it ") + _REMEDIES.get(status, "").format(env=self._key_name))

    def _stop(self, said: str) -> NoReturn:
        """Raise a failure that no other try mends, now and at every later request."""
        self._refusal = f"{self.where}: {said}"
        raise ModelError(self._refusal) from None

    def _line(self, said: Any) -> str:
        """Return what a server or a library said, on one line, as far as it is worth showing."""
        return " ".join(self._safe(str(said)).split())[:_LONGEST]  # cut last, or half a key stays

    def _safe(self, text: str) -> str:
        """Return a text without the API key, which some servers echo."""
        key = self._client.api_key
        return redacted(text if key == _NO_KEY else text.replace(key, "***"))
