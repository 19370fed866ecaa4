"""The curve of a layer: what a vector does there at growing strengths, and where it ends."""

from collections.abc import Sequence
from dataclasses import dataclass

_DIRECTIONS = (-1.0, 1.0)


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What was measured at one layer and coefficient.

    Attributes:
        layer: 0-based decoder block.
        share: Length of what is added, as a share of the residual norm at this layer.
        coefficient: The same as a factor on the vector.
        shift: Of the likelihood, towards the pole, nats per token.
        judge: Shift of the judge's mean, towards the pole, on the 1-5 scale; ``None`` if it could
            not read a single reply.
        kl_to_base: KL(base || steered) on the unsteered model's own replies, nats per token.
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


def usable(curve: Sequence[CurvePoint], floor: float) -> list[CurvePoint]:
    """Return the points of one layer that can be used, by share.

    In each direction these are the points before the first one that is less coherent than
    ``floor``, or that moves the trait no further than the point before it.
    """
    kept: list[CurvePoint] = []
    for direction in _DIRECTIONS:
        reached = 0.0
        side = [point for point in curve if direction * point.share > 0]
        for point in sorted(side, key=lambda point: abs(point.share)):
            if point.coherence < floor or direction * (point.shift - reached) <= 0:
                break
            reached = point.shift
            kept.append(point)
    return sorted(kept, key=lambda point: point.share)


def following(curve: Sequence[CurvePoint], shares: Sequence[float], floor: float) -> list[float]:
    """Return the shares to measure next: one for each direction that has not ended.

    A direction ends with its first point that is not usable; that point is part of the curve.

    Args:
        curve: What has been measured at one layer.
        shares: Positive and rising; both directions take them.
        floor: Lowest coherence to accept.
    """
    measured = {point.share for point in curve}
    good = {point.share for point in usable(curve, floor)}
    found = []
    for direction in _DIRECTIONS:
        ahead = [direction * share for share in shares if direction * share not in good]
        found += [share for share in ahead[:1] if share not in measured]
    return found


def swing(curve: Sequence[CurvePoint], floor: float) -> float:
    """Return how far the usable part of a curve moves the trait, from end to end; nats per token.

    A direction without a usable point adds nothing.
    """
    shifts = [0.0, *(point.shift for point in usable(curve, floor))]
    return max(shifts) - min(shifts)
