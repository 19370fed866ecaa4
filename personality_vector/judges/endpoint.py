"""A judge behind an OpenAI-compatible server, read by the probabilities of numbers."""

import uuid
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from personality_vector.data.personas import COHERENCE
from personality_vector.errors import DataError, ModelError, redacted
from personality_vector.judges.spec import FIVE, Likely, NumberJudge, prompt_from_1_to_5
from personality_vector.progress import progress
from personality_vector.recipes.schema import Real, Whole, Words
from personality_vector.subject import Answer, Chat, Rubric, digest_of
from personality_vector.subject.endpoint import Endpoint, Limits, UnansweredError
from personality_vector.subject.responses import Prices, Responses

_FROM_1_TO_5 = "1-5"
_LOOK_SECONDS = 0.1
_DIGITS_TO_TELL = 5  # where numbers are whole tokens, some of the likeliest have two digits

Ask = Callable[[Chat, Callable[[], bool]], Likely | str]
"""Asks a prompt, unless it is told that all was stopped."""


class EndpointJudge(NumberJudge):
    """A model of a server that returns log-probabilities; each answer is one request of one token.

    ``base_url`` is OpenAI's own unless given, such as ``http://localhost:8000/v1``;
    ``api_key_env`` is the environment variable that holds the key. ``scale`` is that of the rubric:
    ``0-100`` for a trait or coherence, ``1-5`` for a trait.

    ``requests`` are sent at the same time, at most ``per_minute`` of them begin in a minute, each
    has ``timeout`` seconds and ``retries`` further tries. With ``price_in`` and ``price_out`` per
    million tokens, ``budget`` is the most that the answers of a run may cost. Responses are kept in
    the user's cache, so that nothing is asked twice.

    Source:
        Persona vectors, Chen et al. 2025, arXiv:2507.21509: the expectation of the number under
        the judge's own probabilities, which has no ties and no noise of sampling. Deviation: our
        own prompts.
    """

    model_config = ConfigDict(serialize_by_alias=True)

    model: Words
    base_url: Words | None = None
    api_key_env: Words = "OPENAI_API_KEY"
    rubric: Literal["0-100", "1-5"] = Field(default="0-100", alias="scale")
    requests: Whole = Field(default=16, ge=1)
    per_minute: Whole | None = Field(default=None, ge=1)
    timeout: Real = Field(default=60.0, gt=0.0)
    retries: Whole = Field(default=5, ge=0)
    price_in: Real | None = Field(default=None, ge=0.0)
    price_out: Real | None = Field(default=None, ge=0.0)
    budget: Real | None = Field(default=None, gt=0.0)

    is_remote: ClassVar[bool] = True
    neutral: ClassVar[frozenset[str]] = frozenset(
        {"api_key_env", "rubric", "requests", "per_minute", "timeout", "retries"}
        | {"price_in", "price_out", "budget"}
    )

    @model_validator(mode="after")
    def _priced(self) -> "EndpointJudge":
        if self.budget is not None and None in (self.price_in, self.price_out):
            raise ValueError("budget needs price_in and price_out, the prices of a million tokens")
        return self

    @field_validator("base_url")
    @classmethod
    def _without_a_key(cls, base_url: str | None) -> str | None:
        # A recipe is copied into results and reports.
        if base_url is not None and redacted(base_url) != base_url:
            raise ValueError("holds a key or a password; put it into the variable of api_key_env")
        return base_url

    def open(self) -> "EndpointJudge":
        """Return this judge, after checking that nothing it needs is missing.

        Raises:
            RecipeError: The package ``openai`` is not installed, or the variable is not set.
        """
        Endpoint(self.model, self.base_url, self.api_key_env)  # not kept: no client can be pickled
        return self

    @property
    def name(self) -> str:
        """``endpoint`` and the name of the model."""
        return f"endpoint {self.model}"

    @property
    def lowest(self) -> int:  # type: ignore[override]
        """The smallest number of the rubric."""
        return 1 if self.rubric == _FROM_1_TO_5 else 0

    @property
    def highest(self) -> int:  # type: ignore[override]
        """The largest number of the rubric: up to 100, each is a token of OpenAI's tokenizers."""
        return 5 if self.rubric == _FROM_1_TO_5 else 100

    @property
    def scale(self) -> tuple[float, float]:
        """The ends of the rubric."""
        return float(self.lowest), float(self.highest)

    def identity(self) -> str:
        """Return the digest of the model, the server, the rubric and its prompts."""
        usual = super().identity()
        return digest_of(usual, FIVE) if self.rubric == _FROM_1_TO_5 else usual

    def prompt(self, rubric: Rubric, answer: Answer) -> Chat:
        """Return the chat that asks for the rating of an answer."""
        if self.rubric != _FROM_1_TO_5:
            return super().prompt(rubric, answer)
        return prompt_from_1_to_5(rubric, answer)

    def __call__(self, rubric: Rubric, answers: Sequence[Answer], /) -> list[Any]:
        """Return one score for each answer, in order.

        Raises:
            DataError: The rubric is coherence, but the scale 1-5 is for traits.
            ModelError: The server fails for good, returns no log-probabilities, or the budget is
                used up.
        """
        if self.rubric == _FROM_1_TO_5 and rubric.trait == COHERENCE.trait:
            raise DataError(
                f"{self.name}: scale 1-5 rates traits, not {COHERENCE.trait}; use scale 0-100"
            )
        return super().__call__(rubric, answers)

    @cached_property
    def account(self) -> str:
        """Who pays; another for every process until a folder is named."""
        return uuid.uuid4().hex

    @cached_property
    def endpoint(self) -> Endpoint:
        """The model, opened when it is first asked."""
        prices = Prices(self.price_in or 0.0, self.price_out or 0.0, self.budget)
        limits = Limits(self.timeout, self.retries, self.per_minute, prices, self.account)
        return Endpoint(self.model, self.base_url, self.api_key_env, limits)

    @cached_property
    def stopped(self) -> Event:
        """Set once nothing more is to be sent."""
        return Event()

    def billed_to(self, folder: Path) -> "EndpointJudge":
        """Return this judge for the answers of a run: a budget is that of the folder."""
        judge = self.model_copy()
        for name in ("endpoint", "stopped"):
            judge.__dict__.pop(name, None)
        judge.__dict__["account"] = f"{folder.resolve()} {self.identity()}"
        return judge

    def stop(self) -> None:
        """Send nothing more."""
        self.stopped.set()

    def bill(self) -> dict[str, Any]:
        """Return how much was asked for the run, and its price where prices are given."""
        with Responses.open() as kept:
            spent = kept.spent(self.account)
        found: dict[str, Any] = {"judge": self.name, **spent._asdict()}
        if self.price_in is not None or self.price_out is not None:
            prices = Prices(self.price_in or 0.0, self.price_out or 0.0)
            found["price"] = prices.of(spent.tokens_in, spent.tokens_out)
        return found

    def first_tokens(self, prompts: Sequence[Chat], among: Sequence[str]) -> list[Likely | str]:
        """Return the likeliest first tokens of each reply, or why the server gave none.

        Raises:
            ModelError: See above; or ``among`` has longer numbers, of which the model writes the
                first digit alone.
        """
        if not prompts:
            return []
        distinct = {digest_of(prompt): prompt for prompt in prompts}
        ask = partial(self._first_token, has_numbers=any(len(text) > 1 for text in among))
        with Responses.open() as kept:
            asking = _Asking(partial(ask, kept), list(distinct.values()), self.stopped)
            found = asking.answers(self.requests)
        by_prompt = dict(zip(distinct, found, strict=True))
        return [by_prompt[digest_of(prompt)] for prompt in prompts]

    def _first_token(
        self,
        kept: Responses,
        prompt: Chat,
        is_stopped: Callable[[], bool],
        *,
        has_numbers: bool,
    ) -> Likely | str:
        try:
            found = self.endpoint.first_token(prompt, kept, is_stopped)
        except UnansweredError as error:
            return str(error)
        lengths = [len(text) for text in {token.strip() for token in found} if text.isdigit()]
        if has_numbers and len(lengths) >= _DIGITS_TO_TELL and max(lengths) == 1:
            raise ModelError(
                f"{self.name}: writes numbers digit by digit, so that its first token cannot tell "
                "7 from 70; use scale 1-5"
            )
        return found


class _Asking:
    """Prompts that several threads work through.

    The threads are daemons: otherwise Ctrl-C would wait for requests that are on their way.
    """

    def __init__(self, ask: Ask, prompts: Sequence[Chat], stopped: Event) -> None:
        self._ask, self._stopped, self._over, self._lock = ask, stopped, Event(), Lock()
        self._todo, self._count = iter(enumerate(prompts)), len(prompts)
        self._done: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()

    def answers(self, threads: int) -> list[Likely | str]:
        """Return the answer to each prompt, in order.

        After an error nothing more begins, but what is on its way ends and is kept.

        Raises:
            ModelError: An answer raised it, or all was stopped from outside.
        """
        pool = [Thread(target=self._work, daemon=True) for _ in range(min(threads, self._count))]
        for thread in pool:
            thread.start()
        found: dict[int, Likely | str] = {}
        try:
            for _ in progress(range(self._count), "judge"):
                place, answer = self._next()
                found[place] = answer
        except Exception:
            self._over.set()
            for thread in pool if not self._stopped.is_set() else ():
                thread.join()
            raise
        finally:
            self._over.set()
        return [found[place] for place in range(self._count)]

    def _is_stopped(self) -> bool:
        return self._over.is_set() or self._stopped.is_set()

    def _work(self) -> None:
        while not self._is_stopped():
            with self._lock:
                place, prompt = next(self._todo, (-1, None))
            if prompt is None:
                return
            try:
                self._done.put((place, self._ask(prompt, self._is_stopped), None))
            except BaseException as error:  # noqa: BLE001  (the thread that waits raises it)
                self._done.put((place, None, error))
                self._over.set()

    def _next(self) -> tuple[int, Likely | str]:
        while True:
            try:
                place, answer, error = self._done.get(timeout=_LOOK_SECONDS)
            except Empty:
                if self._is_stopped() and self._done.empty():
                    raise ModelError("the judging was stopped") from None
                continue
            if error is not None:
                raise error
            return place, answer
