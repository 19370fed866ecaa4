"""Carrying out a profile recipe: measure each term alone, solve for alphas, measure the merge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personality_vector.checkpoint import Checkpoint
from personality_vector.delta import Delta
from personality_vector.errors import DataError, RecipeError, some
from personality_vector.interventions.weights import WeightEdit
from personality_vector.measures.likelihood import LikelihoodSpec
from personality_vector.merging.merged import Merged, merged_by
from personality_vector.numeric.statistics import Interval
from personality_vector.study.comparison import Column, Comparison
from personality_vector.study.design import BASE, Arm, require_distinct
from personality_vector.study.judging import judges_of, rubrics_of
from personality_vector.study.numbers import Number, numbers_of
from personality_vector.study.profile.recipe import ProfileRecipe
from personality_vector.study.profile.result import Profile, Shifts, Try
from personality_vector.study.profile.solving import Aim, Linear
from personality_vector.study.recipe import require_trained_on_the_rest
from personality_vector.study.run import Run
from personality_vector.study.study import Study
from personality_vector.subject import Measure
from personality_vector.traits import Trait

_RAY = (0.25, 0.5, 0.75, 1.0, 1.25)
"""Multiples of the best alphas that are measured where the target is out of reach."""


@dataclass(frozen=True, slots=True, eq=False)
class Search:
    """What alphas are looked for, with what is opened and checked for it.

    Attributes:
        recipe: What to find.
        base: The model that is edited.
        deltas: Each term alone with an alpha of 1.
        measure: What gives the shifts.

    Raises:
        RecipeError: The measure does not have a trait of the target, or has several judges.
    """

    recipe: ProfileRecipe
    base: Checkpoint
    deltas: Sequence[Delta]
    measure: Measure

    @classmethod
    def open(cls, recipe: ProfileRecipe, measure: Measure | None = None) -> "Search":
        """Open and check everything but the weights.

        Args:
            recipe: What to find.
            measure: In place of that of the recipe.

        Raises:
            PersonalityVectorError: An input is missing, unreadable or of another base.
        """
        base = Checkpoint.open(recipe.base)
        if isinstance(recipe.measure, LikelihoodSpec):
            for tuned in filter(None, (term.tuned for term in recipe.terms)):
                require_trained_on_the_rest(Path(tuned), recipe.measure)
        deltas = [_alone(recipe, number, base) for number in range(len(recipe.terms))]
        require_distinct("terms", [one.label for one in deltas], "give each its own label")
        return cls(recipe, base, deltas, measure or recipe.measure.open())

    def __post_init__(self) -> None:
        if len(judges_of(self.measure)) > 1:
            raise RecipeError("measure: give it one judge; the shifts are those of its scores")
        rated = [rubric.trait for rubric in rubrics_of(self.measure)]
        if known := getattr(self.measure, "traits", ()) or rated:
            _require_measured(self.recipe.target, known)

    def plan(self) -> dict[str, Any]:
        """Return what was found in the inputs, and how many merges will be measured."""
        return {
            "contents": {key: each for key, each in self.made_from.items() if key != "recipe"},
            "poles": {one.label: str(one.pole or "") for one in self.deltas},
            "measured": {"alone": 2 * len(self.deltas), "tries_at_most": self.recipe.tries},
        }

    @property
    def made_from(self) -> dict[str, Any]:
        """The recipe, the base, and the content of what the terms and the measure read."""
        identities = {one.label: one.identity for one in self.deltas}
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "base": self.base.fingerprint.digest,
            "terms": identities,
            "measure": self.measure.identity(),
        }


def _alone(recipe: ProfileRecipe, number: int, base: Checkpoint) -> Delta:
    """Return one term as the method takes it with an alpha of 1, under its own name."""
    found = merged_by(recipe.merge([1.0], [number]), base)
    (term,) = found.source.terms if isinstance(found.source, Merged) else ()
    return replace(found, label=term.delta.label, pole=term.delta.pole)


def profile(search: Search, folder: Path) -> Profile:
    """Return the alphas whose merge comes nearest to the target, and what they reach.

    Each term is measured alone in both directions. A linear model of the shifts gives alphas, the
    merge of all terms is measured with them, and the model is corrected by it, until the target of
    every trait lies within the interval of its shift. The same inputs give the same profile.

    Args:
        search: What to find.
        folder: Keeps what is measured, so that an interrupted search resumes.

    Raises:
        PersonalityVectorError: An input is unreadable or of another model.
        DataError: No term moves a trait of the target, or the measure gives no interval.
    """
    bench = _Bench(search, folder)
    slopes, tries = bench.slopes(), list[Try]()
    _require_moving(search.recipe.target, slopes)
    model, aim = _start(slopes), Aim.of(search.recipe, slopes)
    while len(tries) < search.recipe.tries:
        alphas = aim.solved(model)
        if not aim.promises(model.at(alphas), [_values(one.shifts) for one in tries]):
            break
        tries.append(bench.tried(alphas))
        if not tries[-1].lacking(aim.target) or not alphas.any():
            break
        model = model.after(alphas, _values(tries[-1].shifts))
    best = min(
        tries, key=lambda one: (bool(one.lacking(aim.target)), aim.distance(_values(one.shifts)))
    )
    return Profile(
        [one.label for one in search.deltas],
        [str(one.pole or "") for one in search.deltas],
        search.recipe.target,
        search.measure.unit,
        search.recipe.most,
        search.recipe.tries,
        slopes,
        tries,
        best,
        bench.curve(best) if best.lacking(aim.target) else (),
        search.recipe.merge(best.alphas),
        search.made_from,
    )


class _Bench:
    """A folder in which merges are measured, one study after the other; each adds to the last."""

    def __init__(self, search: Search, folder: Path) -> None:
        self.search, self.folder = search, folder
        step = search.recipe.step
        self.arms = [Arm(WeightEdit(delta), (-step, step)) for delta in search.deltas]
        self.merges: dict[tuple[float, ...], str] = {}
        self.known: list[Trait] = []  # traits whose slopes are known

    def slopes(self) -> dict[Trait, list[Interval]]:
        """Measure the base and each term alone; return the slope of each trait for each term.

        A trait without a target that cannot be scored everywhere is left out.

        Raises:
            DataError: The measure gives no interval of a shift.
            RecipeError: It gives several numbers of traits or none, or lacks a trait of the target.
        """
        columns, step = self._columns(), self.search.recipe.step
        _require_measured(self.search.recipe.target, list(columns))
        slopes = {
            trait: [
                _divided(column.between((one.label, step), (one.label, -step)), 2 * step)
                for one in self.search.deltas
            ]
            for trait, column in columns.items()
        }
        found = {trait: row for trait, row in slopes.items() if np.isfinite(row).all()}
        if lacking := self.search.recipe.target.keys() - found.keys():
            raise DataError(
                f"{self.search.measure.name}: gives no interval of a shift of {some(lacking)}; "
                "take a measure with several items, or give several seeds"
            )
        self.known = list(found)
        return found

    def tried(self, alphas: Float[ndarray, " terms"]) -> Try:
        """Measure the merge of all terms; where every alpha is 0, that is the base."""
        place = (BASE, 0.0) if not alphas.any() else (self._merge(tuple(alphas), 1.0), 1.0)
        return Try(tuple(map(float, alphas)), self._shifts(place))

    def curve(self, best: Try) -> list[tuple[float, Shifts]]:
        """Measure multiples of the alphas of a try; the base has none."""
        if not any(best.alphas):
            return []
        label = self._merge(best.alphas, *_RAY)
        return [(times, self._shifts((label, times))) for times in _RAY]

    def _merge(self, alphas: tuple[float, ...], *strengths: float) -> str:
        """Add a merge, or further strengths of one, to what is measured; return its label."""
        label = self.merges.setdefault(alphas, f"try {len(self.merges) + 1}")
        delta = merged_by(self.search.recipe.merge(alphas), self.search.base, label)
        kept = [arm for arm in self.arms if arm.label != label]
        self.arms = [*kept, Arm(WeightEdit(delta, label), strengths)]
        return label

    def _shifts(self, place: tuple[str, float]) -> Shifts:
        columns = self._columns()
        shifts = {trait: columns[trait].at(place) for trait in self.known}
        if unknown := [trait for trait, shift in shifts.items() if not np.isfinite(shift).all()]:
            raise DataError(
                f"{self.search.measure.name}: nothing about {some(unknown)} can be scored at "
                f"{place[0]}; take another measure or judge, or a smaller most"
            )
        return shifts

    def _columns(self) -> Mapping[Trait, Column]:
        """Measure what is missing, and return the numbers of each trait, item by item."""
        recipe = self.search.recipe
        run = Study(
            self.search.base,
            self.arms,
            (self.search.measure,),
            recipe.seeds,
            recipe.dtype,
            recipe.device,
            recipe=recipe.model_dump(mode="json"),
            template=recipe.template,
        ).run(self.folder)
        number, found = _number_of(run), Comparison(run)
        readings = run.readings().query("measure == @number.measure and judge == @number.judge")
        return {
            str(trait): Column(number.name, found.cells(number, str(trait)), is_shift=True)
            for trait in readings["trait"].unique()
        }


def _number_of(run: Run) -> Number:
    found = numbers_of(run, of_traits=True)
    if len(found) != 1:
        named = some(one.name for one in found) or "none"
        raise RecipeError(
            f"measure: a profile needs one number of each trait, such as likelihood gives; this "
            f"measure gives {named}"
        )
    return found[0]


def _require_measured(target: Mapping[Trait, float], known: Sequence[Trait]) -> None:
    if lacking := target.keys() - set(known):
        raise RecipeError(f"target: {some(lacking)} is not measured; the measure has {some(known)}")


def _require_moving(
    target: Mapping[Trait, float], slopes: Mapping[Trait, Sequence[Interval]]
) -> None:
    for trait, wanted in target.items():
        if wanted and all(one.low <= 0.0 <= one.high for one in slopes[trait]):
            raise DataError(
                f"target: no term moves {trait}, since the interval of every slope holds 0; add a "
                "vector of this trait, or raise step"
            )


def _start(slopes: Mapping[Trait, Sequence[Interval]]) -> Linear:
    """Return the model about the base."""
    matrix = np.array([[one.value for one in row] for row in slopes.values()])
    return Linear(np.zeros(matrix.shape[1]), np.zeros(len(matrix)), matrix)


def _values(shifts: Shifts) -> Float[ndarray, " traits"]:
    return np.array([one.value for one in shifts.values()])


def _divided(shift: Interval, by: float) -> Interval:
    return Interval(*(end / by for end in shift))
