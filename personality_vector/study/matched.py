"""Strengths at which interventions are equal in a number: in their effect, or in what they cost.

An alpha and a coefficient have different units, so interventions are compared where they move the
model equally far.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field

from personality_vector.errors import RecipeError
from personality_vector.recipes.schema import Real, Recipe, Words
from personality_vector.study.curves import (
    DosePoint,
    beside,
    interpolated_strength,
    matched_strength,
    nearest_strength,
    power_of,
    sign_of,
    targets_of,
)
from personality_vector.study.design import BASE, Point, grid_of
from personality_vector.subject import Measure
from personality_vector.traits import Pole

if TYPE_CHECKING:
    from personality_vector.study.worker import Worker


def _rising_targets(targets: tuple[float, ...]) -> tuple[float, ...]:
    if any(later <= earlier for earlier, later in pairwise((0.0, *targets))):
        raise ValueError("targets must rise from above 0, such as [0.1, 0.3]")
    return targets


class Axis(Recipe):
    """A number in which interventions are made equal.

    ``number`` is named as in tables: ``likelihood``, ``interview by states``, ``divergence.p95``. A
    target is how far the number moves from the base's: towards the pole if it is one of the pole's
    trait, and otherwise to the worse, which for a divergence is its value. Without ``targets``,
    they are equal steps up to what the weakest intervention reaches; equal steps of the square root
    for a divergence, which grows with the square of a small strength.
    """

    number: Words
    targets: Annotated[
        tuple[Real, ...] | None,
        AfterValidator(lambda targets: targets and _rising_targets(targets)),
    ] = Field(default=None, min_length=1)


def _named(axes: Any) -> Any:
    if not isinstance(axes, list | tuple):
        return axes
    return [{"number": axis} if isinstance(axis, str) else axis for axis in axes]


def _once(axes: tuple[Axis, ...]) -> tuple[Axis, ...]:
    names = [axis.number for axis in axes]
    if len(set(names)) < len(names):
        raise ValueError("each number only once, with all of its targets")
    return axes


Axes = Annotated[tuple[Axis, ...], BeforeValidator(_named), AfterValidator(_once)]


class _Source(NamedTuple):
    """Where a number of the live study comes from.

    Attributes:
        measure: The measure that gives it.
        number: Its name in the readings of the measure.
        trait: The trait, or "".
        judge: The digest that the scores of its judge are kept under, or "".
        sign: The direction that counts.
        power: With which it grows at small strengths.
    """

    measure: Measure
    number: str
    trait: str
    judge: str
    sign: int
    power: int

    def shift(
        self, worker: "Worker", label: str, strength: float, probe: Measure | None = None
    ) -> float | None:
        """Return the mean shift over seeds, measuring what is missing.

        ``probe`` is measured in place of the measure, where it gives the same number.
        """
        measure = probe or self.measure
        points = [Point(label, strength, seed) for seed in worker.study.seeds]
        worker.measure(points, [measure])
        if self.judge:
            worker.rate(points, [measure])
        shifts = [
            here - base
            for point in points
            if (here := self._value(worker, point, measure)) is not None
            and (base := self._value(worker, Point(BASE, 0.0, point.seed), self.measure))
            is not None
        ]
        return self.sign * sum(shifts) / len(shifts) if shifts else None

    def _value(self, worker: "Worker", point: Point, measure: Measure) -> float | None:
        cell = worker.study.cell(point, measure)
        return worker.store.value(cell, self.number, self.trait, self.judge)

    def curves(self, worker: "Worker") -> dict[str, list[DosePoint]]:
        """Return, per intervention, the points of the grid that have a shift."""
        return {
            arm.label: [
                DosePoint(strength, shift)
                for strength in arm.strengths
                if (shift := self.shift(worker, arm.label, strength)) is not None
            ]
            for arm in worker.study.arms
        }


@dataclass(frozen=True, slots=True)
class Matched:
    """A grid, and then every arm at the strengths where all have the same shift of a number.

    An arm with steps, such as a prompt, is taken at the nearest step. Over several seeds the shift
    is the mean, so that all seeds are measured at one strength. Of the two directions of strength,
    every number but the effect takes the one that moves the effect towards ``pole``.

    Attributes:
        pole: The pole to move towards.
        axes: The numbers; none stands for the effect.
        points: Number of targets of an axis that names none.
        measures: Those of the study; the one called as ``probe`` is gives the effect.
        probe: The same measure of this trait alone, for strengths in between.

    Raises:
        RecipeError: An axis is a number that none of the measures gives.
    """

    pole: Pole
    axes: Sequence[Axis]
    points: int
    measures: Sequence[Measure]
    probe: Measure

    def __post_init__(self) -> None:
        from personality_vector.study.judging import judges_of, rubrics_of

        object.__setattr__(self, "axes", self.axes or (Axis(number=self.probe.name),))
        judged = {f"{m.name} by {j.name}": m for m in self.measures for j in judges_of(m)}
        read = [measure.name for measure in self.measures if not rubrics_of(measure)]
        for axis in self.axes:
            if axis.number not in judged and axis.number.partition(".")[0] not in {
                name.partition(".")[0] for name in read
            }:
                raise _unknown(axis.number, [*read, *judged])

    @property
    def effect(self) -> Measure:
        """The measure whose shift is the effect."""
        return next(measure for measure in self.measures if measure.name == self.probe.name)

    def batches(self, worker: "Worker") -> Iterator[Sequence[Point]]:
        """Yield the grid, then the matched points, which are noted in the store."""
        base, grid = grid_of(worker.study)
        yield base
        effect, *sources = self._sources(worker)
        worker.take(grid, worker.study.swept)
        effects = effect.curves(worker)
        matches = [
            (axis.number, *match)
            for axis, source in zip(self.axes, sources, strict=True)
            for match in self._matches(worker, axis, source, effects)
        ]
        worker.store.note(
            pole=str(self.pole),
            effect=self.effect.name,
            axes=[axis.model_dump() for axis in self.axes],
            matches=matches,
        )
        yield [
            Point(label, strength, seed)
            for _, label, _, strength in matches
            if strength is not None
            for seed in worker.study.seeds
        ]

    def _sources(self, worker: "Worker") -> list[_Source]:
        """Return where the effect and every axis come from, once the base has been measured.

        Raises:
            RecipeError: A measure does not give the number of an axis.
        """
        from personality_vector.study.numbers import numbers_of
        from personality_vector.study.run import Run

        worker.rate([Point(BASE, 0.0, seed) for seed in worker.study.seeds], self.measures)
        run = Run(worker.store.path.parent)
        readings = run.readings()
        of_pole = set(readings.query("trait == @self.pole.trait")["measure"])
        known = {
            number.name: (number, trait)
            for trait, is_of_trait in (("", False), (self.pole.trait, True))
            for number in numbers_of(run, of_traits=is_of_trait)
            if not trait or number.measure in of_pole
        }
        found = []
        for name in (self.probe.name, *(axis.number for axis in self.axes)):
            if name not in known:
                raise _unknown(name, list(known))
            found.append(self._source(*known[name]))
        return found

    def _source(self, number: Any, trait: str) -> _Source:
        from personality_vector.study.judging import judge_key, judges_of, rubrics_of

        measure = max(
            (one for one in self.measures if f"{number.measure}.".startswith(f"{one.name}.")),
            key=lambda one: len(one.name),
        )
        key = "".join(
            judge_key(judge, rubric)
            for judge in judges_of(measure)
            for rubric in rubrics_of(measure)
            if (judge.name, rubric.trait) == (number.judge, trait)
        )
        sign = sign_of(number.better, self.pole if trait else None)
        power = power_of(number.unit, number.better)
        return _Source(measure, number.measure, trait, key, sign, power)

    def _matches(
        self,
        worker: "Worker",
        axis: Axis,
        source: _Source,
        effects: Mapping[str, Sequence[DosePoint]],
    ) -> list[tuple[str, float, float | None]]:
        """Return intervention, target and strength, ``None`` where no strength is near."""
        curves = source.curves(worker)
        if source.measure is not self.effect:
            curves = {label: beside(effects[label], own) for label, own in curves.items()}
        targets = axis.targets or targets_of(list(curves.values()), self.points, source.power)
        return [
            (label, target, self._strength(worker, source, label, curve, target))
            for target in targets
            for label, curve in curves.items()
        ]

    def _strength(
        self,
        worker: "Worker",
        source: _Source,
        label: str,
        curve: Sequence[DosePoint],
        target: float,
    ) -> float | None:
        if worker.study.arm(label).steps is not None:
            return nearest_strength(curve, target)
        shift = partial(source.shift, worker, label)
        if source.measure is self.effect:
            live: Any = partial(shift, probe=self.probe)
            return matched_strength(curve, target, live)
        return interpolated_strength(curve, target, shift, source.power)


def _unknown(number: str, known: Sequence[str]) -> RecipeError:
    return RecipeError(
        f"match: {number} is not a number of the pole's trait or of no trait that the measures "
        f"give; they give {', '.join(known)}"
    )
