"""The design of a study: which interventions are tried at which strengths, with which seeds.

A design is a grid, or continues to matched effect: an alpha and a coefficient have different units,
so interventions are compared where they have the same effect on the trait.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from personality_vector.errors import RecipeError, some
from personality_vector.interventions.spec import require_step
from personality_vector.subject import Intervention, Measure
from personality_vector.traits import Pole

if TYPE_CHECKING:
    from personality_vector.study.worker import Worker

BASE = "base"
"""Label of the unedited model in the results."""

# Tolerance of a matched strength, as a share of its bracket in the sweep.
_TOLERANCE = 0.01

# A strength whose shift misses the target by a larger share lies at a jump of the curve.
_MAX_MISS = 0.25


class Point(NamedTuple):
    """One intervention at one strength with one seed, where all measures are taken at once."""

    label: str
    strength: float
    seed: int


@dataclass(frozen=True, slots=True)
class Arm:
    """An intervention, and the strengths that it is tried at.

    Attributes:
        intervention: One for all seeds; or seed to intervention, where each seed has its own, such
            as a vector that was trained with it.
        strengths: In the intervention's own unit.
        poles: What a positive strength is meant to move towards.
        group: Name of the arms that a table averages over; by default the label.

    Raises:
        RecipeError: No strength is given, one is given twice, or one is not a step.
        NonFiniteError: A strength is NaN or infinite.
    """

    intervention: Intervention | Mapping[int, Intervention]
    strengths: Sequence[float | int]
    poles: Sequence[Pole] = ()
    group: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "strengths", tuple(map(float, self.strengths)))
        if len({each.label for each in self.by_seed.values()}) != 1:
            raise RecipeError(
                "an arm needs one intervention, or one for each seed with the same label"
            )
        if not self.strengths or len(set(self.strengths)) < len(self.strengths):
            raise RecipeError(f"{self.label}: give at least one strength, and each only once")
        for intervention in self.by_seed.values():
            for strength in self.strengths:
                require_step(intervention, strength)

    @property
    def by_seed(self) -> Mapping[int | None, Intervention]:
        """Seed to intervention; ``None`` stands for every seed."""
        if isinstance(self.intervention, Mapping):
            return dict(self.intervention.items())
        return {None: self.intervention}

    @property
    def label(self) -> str:
        """Name in tables and figures."""
        return next(iter(self.by_seed.values())).label

    @property
    def steps(self) -> tuple[float, ...] | None:
        """The possible strengths, or ``None`` for all real numbers."""
        return next(iter(self.by_seed.values())).steps

    @property
    def is_base_at_zero(self) -> bool:
        """Whether strength 0 is the base; of what is on top of something else it is not."""
        return not any(getattr(each, "acts_at_zero", False) for each in self.by_seed.values())

    @property
    def aim(self) -> dict[str, Any]:
        """What tables and figures have to know of it, as JSON-like data."""
        return {
            "group": self.group or self.label,
            "poles": list(map(str, self.poles)),
            "is_base_at_zero": self.is_base_at_zero,
        }

    def at(self, seed: int) -> Intervention:
        """Return the intervention of a seed."""
        return self.by_seed.get(None) or self.by_seed[seed]


@runtime_checkable
class Design(Protocol):
    """Which points are measured; later points may depend on earlier results."""

    def batches(self, worker: "Worker", /) -> Iterator[Sequence[Point]]:
        """Yield points; each batch has been measured before the next is asked for."""


@dataclass(frozen=True, slots=True)
class Grid:
    """The base, and every arm at each of its strengths, with every seed."""

    def batches(self, worker: "Worker") -> Iterator[Sequence[Point]]:
        """Yield the base, to which everything is compared, and then all the rest."""
        study = worker.study
        yield [Point(BASE, 0.0, seed) for seed in study.seeds]
        yield [
            Point(arm.label, strength, seed)
            for arm in study.arms
            for strength in arm.strengths
            for seed in study.seeds
        ]


def require_distinct(what: str, names: Sequence[str], remedy: str) -> None:
    """Refuse two things with the same name.

    Raises:
        RecipeError: A name occurs twice.
    """
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise RecipeError(f"two {what} are called {some(repeated)}; {remedy}")


@dataclass(frozen=True, slots=True)
class DosePoint:
    """One point of a dose-response curve: a strength and the shift of the trait that it causes."""

    strength: float
    shift: float


def reach(curve: Sequence[DosePoint]) -> float:
    """Return the largest shift in the wanted direction before the curve first turns back."""
    return rising(curve)[-1].shift


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


def nearest_strength(curve: Sequence[DosePoint], target: float) -> float | None:
    """Return the measured strength whose shift is nearest to ``target``, below twice it.

    For interventions with steps, such as prompts, which have no strength in between.
    """
    near = [point for point in rising(curve) if 0.0 < point.shift < 2.0 * target]
    return min(near, key=lambda point: abs(point.shift - target)).strength if near else None


@dataclass(frozen=True, slots=True)
class Matched:
    """A grid, and then every arm at the strengths where it moves ``pole`` equally far.

    The targets are ``points`` equal steps up to what the weakest of the arms reaches. An arm
    with steps, such as a prompt, is taken at the nearest step. Over several seeds the shift is
    the mean, so that all seeds are measured at one strength.

    Attributes:
        pole: The pole to move towards.
        points: Number of targets.
        measure: The measure whose shift is the effect; measured in every cell of the grid.
        probe: The same measure of this trait alone, for strengths in between.
    """

    pole: Pole
    points: int
    measure: Measure
    probe: Measure

    def batches(self, worker: "Worker") -> Iterator[Sequence[Point]]:
        """Yield the grid, then the matched points, which are noted in the store."""
        yield from Grid().batches(worker)
        curves = {
            arm.label: [
                DosePoint(strength, self._shift(worker, arm.label, self.measure, strength))
                for strength in arm.strengths
            ]
            for arm in worker.study.arms
        }
        matches = [
            (label, target, self._strength(worker, label, curve, target))
            for target in targets_of(list(curves.values()), self.points)
            for label, curve in curves.items()
        ]
        worker.store.note(pole=str(self.pole), effect=self.measure.name, matches=matches)
        yield [
            Point(label, strength, seed)
            for label, _, strength in matches
            if strength is not None
            for seed in worker.study.seeds
        ]

    def _strength(
        self, worker: "Worker", label: str, curve: Sequence[DosePoint], target: float
    ) -> float | None:
        if worker.study.arm(label).steps is not None:
            return nearest_strength(curve, target)
        return matched_strength(curve, target, partial(self._shift, worker, label, self.probe))

    def _shift(self, worker: "Worker", label: str, measure: Measure, strength: float) -> float:
        """Return the mean shift over seeds, measuring what is missing."""
        points = [Point(label, strength, seed) for seed in worker.study.seeds]
        worker.measure(points, [measure])
        shifts = [
            worker.value(point, measure, self.pole.trait)
            - worker.value(Point(BASE, 0.0, point.seed), self.measure, self.pole.trait)
            for point in points
        ]
        return self.pole.sign * sum(shifts) / len(shifts)


def targets_of(curves: Sequence[Sequence[DosePoint]], points: int) -> list[float]:
    """Return ``points`` equal steps up to the smallest reach among interventions that have any.

    >>> targets_of([[DosePoint(1.0, 0.4)], [DosePoint(3.0, 0.2), DosePoint(6.0, 0.8)]], 2)
    [0.2, 0.4]
    """
    reaches = [found for found in map(reach, curves) if found > 0]
    return [min(reaches) * step / points for step in range(1, points + 1)] if reaches else []
