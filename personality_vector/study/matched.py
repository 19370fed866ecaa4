"""Matched effect: the strength at which an intervention moves the probe by a given amount.

Comparing interventions at equal raw strength compares nothing: an alpha and a coefficient have
different units. They are compared where they have the same effect on the trait.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

_TOLERANCE = 0.01
"""Of a matched strength, relative to the bracket that the sweep gives."""

_MISSED = 0.25
"""Of the target: a found strength whose shift misses it by more lies at a jump of the curve."""

Effect = Callable[[float], float]


@dataclass(frozen=True, slots=True)
class DosePoint:
    """One point of a dose-response curve: a strength and the shift of the trait that it causes."""

    strength: float
    shift: float


def reach(curve: Sequence[DosePoint]) -> float:
    """Return the largest shift in the wanted direction before the curve first turns back."""
    best = 0.0
    for point in rising(curve):
        best = max(best, point.shift)
    return best


def rising(curve: Sequence[DosePoint]) -> list[DosePoint]:
    """Return the part of the curve that goes out from no effect until it first turns back.

    Of the two directions of strength, the one that reaches further is taken.
    """
    sides = [
        sorted((p for p in curve if p.strength * sign > 0), key=lambda p: abs(p.strength))
        for sign in (1, -1)
    ]
    return max((_until_turn(side) for side in sides), key=lambda side: side[-1].shift)


def _until_turn(side: Sequence[DosePoint]) -> list[DosePoint]:
    kept = [DosePoint(0.0, 0.0)]
    for point in side:
        if point.shift <= kept[-1].shift:
            break
        kept.append(point)
    return kept


def matched_strength(curve: Sequence[DosePoint], target: float, shift: Effect) -> float | None:
    """Return the strength at which ``shift(strength) = target``, or ``None`` if there is none.

    The curve gives the bracket and its two ends, Brent's method the rest, on the live model. Out
    of reach, or jumped over, is ``None``.

    Args:
        curve: Measured points of the intervention.
        target: Shift of the probe, nats per token, positive in the wanted direction.
        shift: Measures the shift at a strength; monotone within the bracket.
    """
    from scipy.optimize import brentq

    for before, after in pairwise(rising(curve)):
        if before.shift <= target <= after.shift:
            known = {point.strength: point.shift for point in (before, after)}

            def excess(strength: float, known: dict[float, float] = known) -> float:
                if strength not in known:
                    known[strength] = shift(strength)
                return known[strength] - target

            width = abs(after.strength - before.strength)
            found = brentq(excess, before.strength, after.strength, xtol=_TOLERANCE * width)
            return float(found) if abs(excess(found)) <= _MISSED * abs(target) else None
    return None


def nearest_strength(curve: Sequence[DosePoint], target: float) -> float | None:
    """Return the measured strength whose shift is nearest to ``target``, below twice it.

    For interventions that come in steps, such as prompts, which have no strength in between.
    """
    near = [point for point in rising(curve) if 0.0 < point.shift < 2.0 * target]
    best = min(near, key=lambda point: abs(point.shift - target), default=None)
    return best.strength if best else None
