"""One batch for many points: each is asked as if alone, and what they ask together runs at once.

Points differ in the strength of one intervention, in the seed, or in both; the samples that one
point draws share batches too (:func:`drawn_together`). Each point has a thread, in
which its measure asks; only one thread runs at a time, and the model runs in the thread that called
:func:`together`.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import zip_longest
from queue import SimpleQueue
from typing import Any, NamedTuple, NoReturn

import torch
from jaxtyping import Float, Int
from torch import Tensor

from personality_vector.errors import DataError, NonFiniteError
from personality_vector.subject.chat import Chat, batched, unchanged
from personality_vector.subject.draws import Draw, batch_seed, one_call
from personality_vector.subject.models import device_of
from personality_vector.subject.protocols import Reply
from personality_vector.subject.spec import Sampling
from personality_vector.subject.subject import Subject, generate_batch

log = logging.getLogger(__name__)


class Share(NamedTuple):
    """One point of a batch.

    Attributes:
        ask: Asks a subject, and returns what it found.
        strength: Of the intervention, where the rows of the batch differ in it.
        memory: Replies that were already drawn at this point.
    """

    ask: Callable[[Subject], Any]
    strength: float | None
    memory: dict[str, list[Reply]]


def together(subject: Subject, shares: Sequence[Share]) -> list[Any]:
    """Return what each point finds; whatever they ask at the same time is one batch.

    The random numbers of a reply are those that the point draws alone, so its replies are the same
    up to the rounding of logits. A batch has no more rows than the batch size of a measure, or one
    for each point.

    Args:
        subject: What is asked. Its intervention reads the strength of each row, if they differ.
        shares: The points. If one fails, all of them end, and its error is raised.

    Raises:
        DataError: A measure uses the model itself, where no row is its own.
    """
    seats = [_Seat(subject, share, len(shares)) for share in shares]
    try:
        answers: Mapping[_Seat, Any] = dict.fromkeys(seats)
        while answers:
            asked = {seat: seat.resume(answer) for seat, answer in answers.items()}
            answers = _answers(subject, {seat: one for seat, one in asked.items() if one})
    finally:
        for seat in seats:
            seat.stop()
    return [seat.found for seat in seats]


class _Request(NamedTuple):
    """What a point asks next; requests with the same ``answer`` and ``options`` share a batch."""

    answer: Callable[..., list[Any]]
    options: tuple[Any, ...]
    draws: Sequence[Draw]


class _Part(NamedTuple):
    """Rows of a batch: one draw of a point, which has a number and perhaps a strength."""

    draw: Draw
    point: int = 0
    strength: float | None = None


class _StoppedError(BaseException):
    """Ends the thread of a point whose batch is given up."""


class _Seat(threading.Thread):
    """The thread of one point: it runs until it asks, and waits for the answer."""

    def __init__(self, subject: Subject, share: Share, count: int) -> None:
        super().__init__(daemon=True)
        self.count, self.strength = count, share.strength
        self.found: Any = None
        self._error: BaseException | None = None
        self._ask = share.ask
        self._subject = _Seated(
            model=_Absent(),
            tokenizer=subject.tokenizer,
            edit=subject.edit,
            decoding=subject.decoding,
            exchange=subject.exchange,
            realised=subject.realised,
            memory=share.memory,
            seat=self,
        )
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._requests: SimpleQueue[_Request | None] = SimpleQueue()
        self.start()

    def run(self) -> None:
        """Ask, and keep what was found or what went wrong."""
        try:
            self._received()
            self.found = self._ask(self._subject)
        except BaseException as error:  # noqa: BLE001  (raised in the thread that began the batch)
            self._error = error
        self._requests.put(None)

    def request(self, request: _Request) -> list[list[Any]]:
        """Return, in this thread, what is found of each list of chats of a request."""
        self._requests.put(request)
        found: list[list[Any]] = self._received()
        return found

    def _received(self) -> Any:
        answer = self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def resume(self, answer: Any) -> _Request | None:
        """Let the thread run with an answer; return what it asks next, or ``None`` at its end."""
        self._answers.put(answer)
        request = self._requests.get()
        if request is None and self._error is not None:
            raise self._error
        return request

    def stop(self) -> None:
        """End the thread, whatever it still wants to ask."""
        while self.is_alive():
            self._answers.put(_StoppedError())
            self.join(timeout=0.1)


class _Absent:
    """Stands for the model in the hands of a measure that shares a batch."""

    def __getattr__(self, name: str) -> NoReturn:
        raise DataError(
            "the measure uses the model itself, so it cannot share a batch with other points; "
            "leave out its points_per_batch"
        )

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        self.__getattr__("__call__")


@dataclass(frozen=True, slots=True, eq=False)
class _Seated(Subject):
    """A point of a batch, as its measure sees it.

    Attributes:
        seat: Its thread.
    """

    seat: _Seat | None = None

    def _drawn(self, draws: Sequence[Draw], sampling: Sampling) -> list[list[Reply]]:
        return self._requested(_Request(_replies, (sampling,), draws))

    def log_likelihood(
        self, chats: Sequence[Chat], batch_size: int = 32
    ) -> Float[Tensor, " chats"]:
        """As :meth:`Subject.log_likelihood`."""
        edited = [self.edited(chat) for chat in chats]
        return torch.stack(self._asked(_likelihoods, edited, batch_size))

    def predictions(
        self, chats: Sequence[Chat], batch_size: int = 8
    ) -> Iterator[tuple[Int[Tensor, " tokens"], Float[Tensor, "tokens vocab"]]]:
        """As :meth:`Subject.predictions`; the points hold one batch together, or one chat each."""
        count = self.seat.count if self.seat else 1
        for batch in batched(chats, max(1, batch_size // count)):
            yield from self._asked(_predictions, [self.edited(chat) for chat in batch], batch_size)

    def next_token(
        self, chats: Sequence[Chat], among: Sequence[int], batch_size: int = 8, opening: str = ""
    ) -> Float[Tensor, "chats tokens"]:
        """As :meth:`Subject.next_token`."""
        self.require_one_call()
        edited = [self.edit(chat) for chat in chats]
        return torch.stack(self._asked(_next_tokens, edited, batch_size, tuple(among), opening))

    def _asked(
        self, answer: Callable[..., list[Any]], chats: Sequence[Chat], *options: Any
    ) -> list[Any]:
        [found] = self._requested(_Request(answer, options, [Draw(chats, 0)]))
        return found

    def _requested(self, request: _Request) -> list[list[Any]]:
        assert self.seat is not None
        return self.seat.request(request)


def _answers(subject: Subject, requests: Mapping[_Seat, _Request]) -> dict[_Seat, Any]:
    """Return the answer to each request, or the error that it ends with."""
    kinds: dict[Any, dict[_Seat, _Request]] = {}
    for seat, request in requests.items():
        kinds.setdefault(request[:2], {})[seat] = request
    asked = replace(  # the chats are edited, and each is one call
        subject, edit=unchanged, decoding={}, exchange=one_call, memory=None
    )
    return {
        seat: found for same in kinds.values() for seat, found in _answered(asked, same).items()
    }


def _answered(subject: Subject, requests: Mapping[_Seat, _Request]) -> dict[_Seat, Any]:
    """Answer requests of one kind; what fails together is tried alone, to know which one fails."""
    parts = [
        _Part(draw, point, seat.strength)
        for point, (seat, request) in enumerate(requests.items())
        for draw in request.draws
    ]
    answer, options = next(iter(requests.values()))[:2]
    try:
        found = iter(answer(subject, parts, *options))
        return {seat: [next(found) for _ in one.draws] for seat, one in requests.items()}
    except Exception as error:  # noqa: BLE001  (it is raised in the thread that asked)
        if len(requests) == 1:
            return dict.fromkeys(requests, error)
        log.info("%d points are asked one by one, since together: %s", len(requests), error)
    alone = (_answered(subject, {seat: one}) for seat, one in requests.items())
    return {seat: found for each in alone for seat, found in each.items()}


def _likelihoods(subject: Subject, parts: Sequence[_Part], size: int) -> list[list[Any]]:
    return _by_row(subject, parts, size, lambda each, chats: each.log_likelihood(chats, len(chats)))


def _predictions(subject: Subject, parts: Sequence[_Part], size: int) -> list[list[Any]]:
    return _by_row(subject, parts, size, lambda each, chats: each.predictions(chats, len(chats)))


def _next_tokens(
    subject: Subject, parts: Sequence[_Part], size: int, among: Sequence[int], opening: str
) -> list[list[Any]]:
    return _by_row(
        subject, parts, size, lambda each, chats: each.next_token(chats, among, len(chats), opening)
    )


def _by_row(
    subject: Subject,
    parts: Sequence[_Part],
    size: int,
    ask: Callable[[Subject, Sequence[Chat]], Iterable[Any]],
) -> list[list[Any]]:
    """Return what is found of each chat of each part, in batches of ``size``.

    The first chats of all parts come first, since chats of one place are nearly of one length.
    """
    columns = zip_longest(*(part.draw.chats for part in parts))
    rows = [(n, chat) for column in columns for n, chat in enumerate(column) if chat is not None]
    found: list[list[Any]] = [[] for _ in parts]
    for batch in batched(rows, size):
        asked = _with_strengths(subject, [parts[n].strength for n, _ in batch])
        values = ask(asked, [chat for _, chat in batch])
        for (n, _), value in zip(batch, values, strict=True):
            found[n].append(value)
    return found


def _with_strengths(subject: Subject, strengths: Sequence[float | None]) -> Subject:
    if None in strengths:
        return subject
    return replace(subject, strengths=torch.tensor(strengths, dtype=torch.float64))


def drawn_together(
    subject: Subject, draws: Sequence[Draw], sampling: Sampling
) -> list[list[Reply]]:
    """Return the replies of each draw of one point; its chats are already edited."""
    return _replies(subject, [_Part(draw) for draw in draws], sampling)


@torch.no_grad()
def _replies(subject: Subject, parts: Sequence[_Part], sampling: Sampling) -> list[list[Reply]]:
    """Return the replies of each part, drawn as :func:`generate_replies` draws them."""
    asked = replace(subject, sampling=sampling)
    firsts = [*{part.point: part for part in reversed(parts)}.values()]
    for some in batched(firsts, sampling.batch_size):
        of_points = _with_strengths(asked, [part.strength for part in some])
        of_points.require_numbers([part.draw.chats[0] for part in some])
    found: list[list[Reply]] = [[] for _ in parts]
    for index, column in enumerate(
        zip_longest(*(batched(p.draw.chats, sampling.batch_size) for p in parts))
    ):
        present = [(n, chats) for n, chats in enumerate(column) if chats is not None]
        most = max(1, sampling.batch_size // max(len(chats) for _, chats in present))
        for batch in batched(present, most):
            rows = [n for n, chats in batch for _ in chats]
            seeds = [(batch_seed(parts[n].draw.seed, index), len(chats)) for n, chats in batch]
            draws = partial(_Draws, sampling, seeds, device_of(asked.model))
            each = _with_strengths(asked, [parts[n].strength for n in rows])
            replies = generate_batch(each, [chat for _, chats in batch for chat in chats], draws)
            is_shared = len({parts[n].point for n, _ in batch}) > 1
            for n, reply in zip(rows, replies, strict=True):
                found[n].append(replace(reply, is_shared=is_shared))
    return found


class _Draws:
    """Makes greedy decoding draw tokens, those of each seed with the random numbers it has alone.

    ``torch.multinomial`` draws one of several as ``argmax(p / q)``, with ``q`` from an exponential
    distribution. ``generate`` calls this after penalties, where it would change the logits itself
    if it drew the tokens.
    """

    def __init__(
        self, sampling: Sampling, seeds: Sequence[tuple[int, int]], device: torch.device
    ) -> None:
        from transformers import TemperatureLogitsWarper, TopPLogitsWarper

        self._warpers: list[Any] = [TemperatureLogitsWarper(float(sampling.temperature))]
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        self._generators = [
            (torch.Generator(device).manual_seed(seed), rows) for seed, rows in seeds
        ]

    def __call__(
        self, input_ids: Int[Tensor, "rows seq"], scores: Float[Tensor, "rows vocab"]
    ) -> Float[Tensor, "rows vocab"]:
        """Return numbers whose largest is the token that is drawn."""
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        likely = torch.softmax(scores, dim=-1)
        if bool(likely.isnan().any()):
            raise NonFiniteError("the model predicts NaN or infinity within a reply")
        noise = [
            torch.empty_like(scores[:rows]).exponential_(1, generator=generator)
            for generator, rows in self._generators
        ]
        return likely / torch.cat(noise)
