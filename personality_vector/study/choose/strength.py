"""What a steering vector does at one layer and coefficient, and how far it can be turned up."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from personality_vector.data.instruments import Instrument
from personality_vector.errors import DataError
from personality_vector.interventions.activations import ActivationSteering
from personality_vector.judges.classifier import StatementJudge
from personality_vector.judges.scores import summarise
from personality_vector.judges.texts import distinct_n
from personality_vector.measures.administer import Response, administer
from personality_vector.measures.probe import LikelihoodProbe
from personality_vector.measures.retention import Retention
from personality_vector.subject.chat import Chat, answered, mean_log_likelihood
from personality_vector.traits import Pole


@dataclass(frozen=True, slots=True)
class Point:
    """What was measured at one layer and coefficient.

    Attributes:
        layer: 0-based decoder block.
        share: Length of what is added, as a share of the residual norm at this layer.
        coefficient: The same as a factor on the vector.
        shift: Of the likelihood probe, towards the pole, nats per token.
        judge: Shift of the judge's mean, towards the pole, on the 1-5 scale; ``None`` if it could
            not read a single reply.
        kl_to_base: On the unsteered model's own replies, nats per token.
        fluency: Perplexity of the unsteered model's own replies over that of these, both under
            the unsteered model, at most 1.
        readable: Share of the replies that the judge can score.
        variety: Share of distinct word pairs over that of the unsteered replies, at most 1.
    """

    layer: int
    share: float
    coefficient: float
    shift: float
    judge: float | None
    kl_to_base: float
    fluency: float
    readable: float
    variety: float

    @property
    def coherence(self) -> float:
        """The least of fluency, readability and variety, in [0, 1]; 1 is as the model was.

        The least, because each is blind to what another sees: a loop is likely, and word salad
        is varied.
        """
        return min(self.fluency, self.readable, self.variety)


@dataclass(frozen=True, slots=True)
class Gauges:
    """What every strength is measured with."""

    pole: Pole
    probe: LikelihoodProbe
    judge: StatementJudge
    instrument: Instrument
    generation: Generation
    samples: int
    seed: int


@dataclass(frozen=True, slots=True, eq=False)
class Yardstick:
    """The unsteered model, measured: every strength is compared with it. See :meth:`prepare`.

    Attributes:
        likelihood: Mean over its own replies of their mean log-likelihood per token.
    """

    model: Any
    tokenizer: Any
    gauges: Gauges
    probe: float
    judge: float
    likelihood: float
    variety: float
    retention: Retention

    @classmethod
    def prepare(cls, model: Any, tokenizer: Any, gauges: Gauges) -> "Yardstick":
        """Measure the unsteered model.

        Raises:
            DataError: It says nothing that the judge can read, or nothing of two words.
        """
        replies = _ask(model, tokenizer, gauges)
        mean, _ = _judged(gauges, replies)
        variety = distinct_n([reply.text for reply in replies], 2)
        if mean is None or not variety:
            raise DataError(
                "the unsteered model gives no readable reply to the instrument, so coherence "
                "cannot be measured; ask it other questions"
            )
        own = _chats(replies)
        return cls(
            model,
            tokenizer,
            gauges,
            gauges.probe(model, tokenizer)[gauges.pole.trait].value,
            mean,
            _likelihood(model, tokenizer, own),
            variety,
            Retention.measure_base(model, tokenizer, own),
        )

    def __call__(self, steering: ActivationSteering, coefficient: float, share: float) -> Point:
        """Return what ``steering`` does at ``coefficient``, on the random numbers of the base."""
        gauges, model, tokenizer = self.gauges, self.model, self.tokenizer
        with steering.applied(model, coefficient) as edit:
            probe = gauges.probe(model, tokenizer, edit)[gauges.pole.trait].value
            replies = _ask(model, tokenizer, gauges)
            divergence = self.retention(model, tokenizer, edit).kl_to_base
        mean, readable = _judged(gauges, replies)
        variety = distinct_n([reply.text for reply in replies], 2) or 0.0
        return Point(
            layer=steering.layers[0],
            share=share,
            coefficient=coefficient,
            shift=gauges.pole.sign * (probe - self.probe),
            judge=None if mean is None else gauges.pole.sign * (mean - self.judge),
            kl_to_base=divergence,
            fluency=self._fluency(replies),
            readable=readable,
            variety=min(1.0, variety / self.variety),
        )

    def _fluency(self, replies: Sequence[Response]) -> float:
        chats = _chats(replies)
        if not chats:
            return 0.0
        excess = self.likelihood - _likelihood(self.model, self.tokenizer, chats)
        return math.exp(-max(0.0, excess))


def scan(measure: Callable[[float], Point], shares: Sequence[float], floor: float) -> list[Point]:
    """Return the points of a curve, by share, scanned outwards in both directions.

    A direction ends with its first point that is below the floor, or whose shift does not go on;
    that point is part of the curve.

    Args:
        measure: Returns the point at a share.
        shares: Positive and rising.
        floor: Of the coherence.
    """
    points: list[Point] = []
    for direction in (-1.0, 1.0):
        reached = 0.0
        for share in shares:
            points.append(measure(direction * share))
            if not _goes_on(points[-1], reached, floor):
                break
            reached = points[-1].shift
    return sorted(points, key=lambda point: point.share)


def usable(curve: Sequence[Point], floor: float) -> list[Point]:
    """Return the points of a scanned curve that are above the floor and go on, by share."""
    kept: list[Point] = []
    for direction in (-1.0, 1.0):
        reached = 0.0
        side = [point for point in curve if direction * point.share > 0]
        for point in sorted(side, key=lambda point: abs(point.share)):
            if not _goes_on(point, reached, floor):
                break
            reached = point.shift
            kept.append(point)
    return sorted(kept, key=lambda point: point.share)


def _goes_on(point: Point, reached: float, floor: float) -> bool:
    """Return whether a point is coherent and further out than what was reached before it."""
    is_beyond = point.shift > reached if point.share > 0 else point.shift < reached
    return point.coherence >= floor and is_beyond


def swing(curve: Sequence[Point], floor: float) -> float:
    """Return how far the usable part of a curve moves the probe, from end to end; nats per token.

    A direction without a usable point adds nothing.
    """
    shifts = [0.0, *(point.shift for point in usable(curve, floor))]
    return max(shifts) - min(shifts)


def _ask(model: Any, tokenizer: Any, gauges: Gauges) -> list[Response]:
    return administer(
        model,
        tokenizer,
        gauges.instrument,
        generation=gauges.generation,
        samples=gauges.samples,
        seed=gauges.seed,
    )


def _judged(gauges: Gauges, replies: Sequence[Response]) -> tuple[float | None, float]:
    """Return the judge's mean and the share of the replies that it could read."""
    summary = summarise(gauges.judge(reply, gauges.pole.trait) for reply in replies)
    return summary.mean, summary.n / len(replies)


def _chats(replies: Sequence[Response]) -> list[Chat]:
    return [answered(reply.chat, reply.text) for reply in replies if reply.text.strip()]


def _likelihood(model: Any, tokenizer: Any, chats: Sequence[Chat]) -> float:
    return float(mean_log_likelihood(model, tokenizer, chats).double().mean())
