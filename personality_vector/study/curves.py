"""Curves of dose and response, and the strength at which one of them has a given height."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import dropwhile, pairwise

from personality_vector.traits import Pole

# Tolerance of a strength that Brent's method finds, as a share of its bracket in the sweep.
_TOLERANCE = 0.01

# A strength whose shift misses the target by a larger share lies at a jump of the curve.
_MAX_MISS = 0.25

# Where a number is noisy or dear: the share by which it may miss, and the most measurements.
_CLOSE, _TRIES = 0.1, 4


@dataclass(frozen=True, slots=True)
class DosePoint:
    """One point of a dose-response curve: a strength and the shift of a number that it causes."""

    strength: float
    shift: float


def reach(curve: Sequence[DosePoint]) -> float:
    """Return the largest shift in the wanted direction before the curve first turns back."""
    return rising(curve)[-1].shift


def rising(curve: Sequence[DosePoint]) -> list[DosePoint]:
    """Return the part of the curve that goes out from strength 0 until it first turns back.

    Of the two directions of strength, the one that reaches further is taken. What is on top of
    another intervention begins at the effect of that one, its point at strength 0; anything else
    begins at none.
    """
    sides = [_until_turn(_origin(curve), on_side(curve, sign)) for sign in (1, -1)]
    return max(sides, key=lambda side: side[-1].shift)


def on_side(curve: Sequence[DosePoint], sign: int) -> list[DosePoint]:
    """Return the points of one direction of strength, outwards."""
    side = [point for point in curve if point.strength * sign > 0]
    return sorted(side, key=lambda point: abs(point.strength))


def _origin(curve: Sequence[DosePoint]) -> DosePoint:
    return next((point for point in curve if point.strength == 0.0), DosePoint(0.0, 0.0))


def _until_turn(origin: DosePoint, side: Sequence[DosePoint]) -> list[DosePoint]:
    kept = [origin]
    for point in side:
        if point.shift <= kept[-1].shift:
            break
        kept.append(point)
    return kept


def beside(effect: Sequence[DosePoint], curve: Sequence[DosePoint]) -> list[DosePoint]:
    """Return the points of a curve in that direction of strength which moves the effect furthest.

    Small strengths that do not move it are left out: they are no turn of the curve. A point at
    strength 0 stays.
    """
    best = max(
        (1, -1),
        key=lambda sign: (
            _until_turn(_origin(effect), on_side(effect, sign))[-1].shift,
            max((point.shift for point in on_side(effect, sign)), default=-math.inf),
        ),
    )
    return [
        *(point for point in curve if point.strength == 0.0),
        *dropwhile(lambda point: point.shift <= 0.0, on_side(curve, best)),
    ]


def matched_strength(
    curve: Sequence[DosePoint], target: float, shift: Callable[[float], float]
) -> float | None:
    """Return the strength at which ``shift(strength) = target``, or ``None`` if there is none.

    The curve gives the bracket and its two ends; Brent's method finds the strength on the live
    model. The result is ``None`` if the target is out of reach or the curve jumps over it.

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

            found = brentq(
                excess,
                before.strength,
                after.strength,
                xtol=_TOLERANCE * abs(after.strength - before.strength),
            )
            return float(found) if abs(excess(found)) <= _MAX_MISS * abs(target) else None
    return None


def interpolated_strength(
    curve: Sequence[DosePoint],
    target: float,
    shift: Callable[[float], float | None],
    power: int = 1,
) -> float | None:
    """Return a strength with ``shift(strength)`` near ``target``, in at most four measurements.

    For numbers that are dear or noisy. The curve is interpolated, and then, up to three times more,
    the bracket that the last measurement narrowed. The result is the nearest strength if it misses
    by at most a quarter of the target; the search ends where it misses by at most a tenth.

    Args:
        curve: Measured points of the intervention.
        target: Positive in the wanted direction.
        shift: Measures the shift at a strength; ``None`` if it cannot be said.
        power: With which the shift grows at small strengths. For 2, a divergence, its square root
            is interpolated: from the base, ``strength * sqrt(target / shift)``.
    """
    for before, after in pairwise(rising(curve)):
        if before.shift <= target <= after.shift:
            tried = [point for point in (before, after) if point.shift == target]
            while not tried or (len(tried) < _TRIES and _miss(tried[-1], target) > _CLOSE):
                at = _between(before, after, target, power)
                if (found := shift(at)) is None:
                    return None
                tried.append(DosePoint(at, found))
                before, after = (tried[-1], after) if found < target else (before, tried[-1])
            nearest = min(tried, key=lambda point: _miss(point, target))
            return nearest.strength if _miss(nearest, target) <= _MAX_MISS else None
    return None


def _miss(point: DosePoint, target: float) -> float:
    return abs(point.shift - target) / target


def _between(before: DosePoint, after: DosePoint, target: float, power: int) -> float:
    """Return where the line through two points, of a root of the shift, has the target."""
    low, aim, high = (
        math.copysign(abs(shift) ** (1 / power), shift)
        for shift in (before.shift, target, after.shift)
    )
    return before.strength + (aim - low) / (high - low) * (after.strength - before.strength)


def nearest_strength(curve: Sequence[DosePoint], target: float) -> float | None:
    """Return the measured strength whose shift is nearest to ``target``, below twice it.

    For interventions with steps, such as prompts, which have no strength in between. There is none
    if the target is beyond twice the reach.
    """
    if target > 2.0 * reach(curve):
        return None
    near = [point for point in rising(curve) if 0.0 < point.shift < 2.0 * target]
    return min(near, key=lambda point: abs(point.shift - target)).strength if near else None


def targets_of(curves: Sequence[Sequence[DosePoint]], points: int, power: int = 1) -> list[float]:
    """Return steps up to the smallest reach among interventions that have any.

    The steps are equal, or for ``power=2`` those of the square root are.

    >>> targets_of([[DosePoint(1.0, 0.4)], [DosePoint(3.0, 0.2), DosePoint(6.0, 0.8)]], 2)
    [0.2, 0.4]
    """
    reaches = [found for found in map(reach, curves) if found > 0]
    steps = range(1, points + 1) if reaches else ()
    return [min(reaches) * step**power / points**power for step in steps]


def power_of(unit: str, better: str) -> int:
    """Return 2 for a divergence, which grows with the square of a small strength, and else 1."""
    return 2 if better == "low" and unit == "nats per token" else 1


def sign_of(better: str, pole: Pole | None) -> int:
    """Return the direction in which a number counts: towards a pole, or else to the worse."""
    if pole is not None:
        return pole.sign
    return -1 if better == "high" else 1
