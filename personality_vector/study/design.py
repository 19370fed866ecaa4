"""The design of a study: which interventions are tried at which strengths, with which seeds.

A design is a grid, or continues to where interventions are equal in a number
(:mod:`personality_vector.study.matched`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from personality_vector.errors import RecipeError, some
from personality_vector.interventions.spec import require_step
from personality_vector.subject import Intervention
from personality_vector.traits import Pole

if TYPE_CHECKING:
    from personality_vector.study.study import Study
    from personality_vector.study.worker import Worker

BASE = "base"
"""Label of the unedited model in the results."""


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
    def is_of_weights(self) -> bool:
        """Whether the weights are edited, which rounds the edit to their dtype."""
        return getattr(next(iter(self.by_seed.values())), "is_of_weights", False)

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
        yield from grid_of(worker.study)


def grid_of(study: "Study") -> tuple[list[Point], list[Point]]:
    """Return the points of the base, and those of every arm at each strength with every seed."""
    return [Point(BASE, 0.0, seed) for seed in study.seeds], [
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
