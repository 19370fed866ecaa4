"""A study: interventions x strengths x measures x seeds on one base, in one resumable folder."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from personality_vector.checkpoint import Checkpoint
from personality_vector.errors import RecipeError, blame, some
from personality_vector.manifest import version_of_tool
from personality_vector.study.database import Judged
from personality_vector.study.design import BASE, Arm, Design, Grid, Point, require_distinct
from personality_vector.study.judging import (
    judge_key,
    judges_of,
    norms_of,
    quality_of,
    rubrics_of,
    scale_of,
)
from personality_vector.study.replacing import remove_if_empty, replaced_results, require_free
from personality_vector.study.run import Run
from personality_vector.study.shards import Shard, require_own_folder
from personality_vector.study.store import FILE, Store
from personality_vector.study.worker import Helpers, Worker, packed, require_measures
from personality_vector.subject import (
    Cell,
    Intervention,
    Judge,
    Measure,
    Template,
    digest_of,
    rated_for,
)
from personality_vector.subject.identity import base_identity


@dataclass(frozen=True)
class Study:
    """Everything to measure; made by :func:`study` or from a recipe.

    Attributes:
        base: The model that every intervention is done to.
        arms: Interventions with their strengths; labels differ.
        measures: What is measured in every cell; names differ.
        seeds: Seeds of all random numbers; each is a repetition.
        dtype: That the base is loaded in.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        design: Which points are measured, and in which order.
        recipe: What the study was read from, for the report.
        template: A chat template and its options, in place of the base's own.
        batch_strengths: Whether strengths share batches: ``never``, ``auto`` where the numbers are
            then the same up to rounding, or also of weights in 16 bits, ``unrounded`` to these.
        where_matched: Names of the measures that are taken of the base and where interventions are
            matched, and not on the grid.

    Raises:
        RecipeError: Two arms, two measures or two seeds are the same, or there is no measure.
        BaseMismatchError: An intervention belongs to another base.
    """

    base: Checkpoint
    arms: Sequence[Arm] = ()
    measures: Sequence[Measure] = ()
    seeds: Sequence[int] = (0,)
    dtype: str = "float32"
    device: str = "auto"
    design: Design = field(default_factory=Grid)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    template: Template = field(default_factory=Template)
    batch_strengths: Literal["auto", "never", "unrounded"] = "auto"
    where_matched: Sequence[str] = ()

    def __post_init__(self) -> None:
        labels = [arm.label for arm in self.arms]
        if BASE in labels:
            raise RecipeError(f"the label {BASE!r} is reserved for the base itself; choose another")
        require_distinct("interventions", labels, "give each its own label")
        require_measures(self.measures)
        if unknown := set(self.where_matched) - {measure.name for measure in self.measures}:
            raise RecipeError(f"where_matched: {some(unknown)} is not among the measures")
        if not self.measures or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise RecipeError(
                "a study needs at least one measure and one seed, and each seed only once"
            )
        if not all(type(seed) is int and abs(seed) < 2**63 for seed in self.seeds):
            raise RecipeError(
                f"seeds are whole numbers below 2**63, got {some(map(str, self.seeds))}"
            )
        for arm in self.arms:
            if None not in arm.by_seed and (lacking := set(self.seeds) - set(arm.by_seed)):
                raise RecipeError(
                    f"{arm.label}: lacks an intervention for seed {some(map(str, lacking))}"
                )
            with blame(intervention=arm.label):
                for intervention in arm.by_seed.values():
                    intervention.check(self.base)

    @cached_property
    def base_identity(self) -> str:
        """Digest of the base: weights, tokenizer, template, dtype and kind of device."""
        return base_identity(self.base, self.dtype, self.device, self.template)

    @cached_property
    def identities(self) -> dict[tuple[str, int | None], str]:
        """Label and seed, ``None`` where an arm has one intervention for all, to its digest."""
        return {
            (arm.label, seed): digest_of(one.identity(), "unrounded")
            if self.is_unrounded(arm.label)
            else one.identity()
            for arm in self.arms
            for seed, one in arm.by_seed.items()
        }

    @cached_property
    def digest(self) -> str:
        """Digest of everything that the tables of a run depend on."""
        return digest_of(
            self._recipe, self.base_identity, self.identities, self._measured, self._judged
        )

    @property
    def swept(self) -> Sequence[Measure]:
        """The measures that are taken on the grid; others only where interventions are matched."""
        return [one for one in self.measures if one.name not in self.where_matched]

    @cached_property
    def _measured(self) -> dict[str, str]:
        return {measure.name: measure.identity() for measure in self.measures}

    def arm(self, label: str) -> Arm:
        """Return the arm of a label."""
        return next(arm for arm in self.arms if arm.label == label)

    def is_base(self, point: Point) -> bool:
        """Return whether nothing is done at a point, as at strength 0 of most interventions."""
        if point.label == BASE:
            return True
        return point.strength == 0.0 and self.arm(point.label).is_base_at_zero

    def cell(self, point: Point, measure: Measure) -> Cell:
        """Return the key of one measure at one point."""
        is_ours = any(one is measure for one in self.measures)
        known = self._measured[measure.name] if is_ours else measure.identity()
        if self.is_base(point):
            return Cell(self.base_identity, self.base_identity, 0.0, known, point.seed)
        own = self.identities.get((point.label, point.seed)) or self.identities[point.label, None]
        return Cell(self.base_identity, own, point.strength, known, point.seed)

    def is_unrounded(self, label: str) -> bool:
        """Return whether an arm edits weights in 16 bits without rounding the edit to these."""
        is_wanted = self.batch_strengths == "unrounded" and self.dtype != "float32"
        return is_wanted and self.arm(label).is_of_weights

    def run(self, folder: str | Path, *, workers: int = 1, force: bool = False) -> Run:
        """Measure what ``folder`` does not hold yet, and return what it holds.

        Several processes may run the same study in one folder: each takes cells that nobody else
        has. No checkpoint is written; the base is edited in memory and restored bit for bit.

        Args:
            folder: Created if missing. If a strength, seed, measure or judge was added, or an input
                changed, only what is missing is measured.
            workers: Processes of this machine, this one included.
            force: Discard what the folder holds.

        Raises:
            RecipeError: ``workers`` is above 1 and something in the study cannot be pickled, or
                another recipe was started in the folder meanwhile.
            OutputExistsError: ``folder`` exists and is not a results folder.
            CheckpointError: Its results are damaged, or of another format.
        """
        out = Path(folder)
        if workers < 1:
            raise RecipeError(f"workers must be at least 1, got {workers}")
        helpers = Helpers(packed(self) if workers > 1 else b"", out, workers - 1)
        is_new = require_free(out)
        with (
            replaced_results(out, self._recipe, force=force),
            Store.open(out / FILE, create=True) as store,
        ):
            try:
                judges = {name: quality_of(judge) for name, judge in self._judges.items()}
                self._begin(store, judges)
                with helpers:
                    Worker(self, store, workers).work()
            except BaseException:
                remove_if_empty(store, out, is_new=is_new)
                raise
        object.__setattr__(self, "_folder", out)
        return Run(out)

    def readings(self) -> pd.DataFrame:
        """Return the readings of the folder that this study was last run in.

        Raises:
            RecipeError: It has not been run.
        """
        folder = getattr(self, "_folder", None)
        if folder is None:
            raise RecipeError("this study has not been run yet; call run(folder) first")
        return Run(folder).readings()

    @property
    def _judges(self) -> dict[str, Judge]:
        return {judge.name: judge for one in self.measures for judge in judges_of(one)}

    @cached_property
    def _judged(self) -> list[Judged]:
        return [
            Judged(measure.name, judge.name, rubric.trait, judge_key(judge, rubric))
            for measure in self.measures
            for judge in judges_of(measure)
            for rubric in rated_for(judge, rubrics_of(measure))
        ]

    def _begin(self, store: Store, judges: Mapping[str, Any]) -> None:
        shard = self.design if isinstance(self.design, Shard) else None
        if shard is not None:
            require_own_folder(store, self.digest, shard)
        store.begin(
            self.digest,
            self._judged,
            recipe=self._recipe,
            version=version_of_tool(),
            shard=None if shard is None else [shard.index, shard.count],
            base={
                "path": str(self.base.path),
                "reference": self.base.reference,
                "identity": self.base_identity,
                "dtype": self.dtype,
                "device": self.device,
                **({} if self.template == Template() else {"template": asdict(self.template)}),
            },
            arms={arm.label: list(arm.strengths) for arm in self.arms},
            unrounded=[arm.label for arm in self.arms if self.is_unrounded(arm.label)],
            poles={arm.label: arm.aim for arm in self.arms},
            seeds=list(self.seeds),
            measures={
                m.name: {"unit": m.unit, "scale": scale_of(m), "better": m.better, **norms_of(m)}
                for m in self.measures
            },
            rubrics={
                m.name: [
                    asdict(one) | {"pole": str(one.pole) if one.pole else None}
                    for one in rubrics_of(m)
                ]
                for m in self.measures
            },
            judges=judges,
        )

    @property
    def _recipe(self) -> dict[str, Any]:
        """The recipe of the study, or a substitute for it if it was made in Python."""
        return dict(self.recipe) or {
            "base": str(self.base.path),
            "interventions": {arm.label: list(arm.strengths) for arm in self.arms},
            "measures": [measure.name for measure in self.measures],
            "seeds": list(self.seeds),
            "dtype": self.dtype,
            "device": self.device,
        }


def study(
    base: str | Path | Checkpoint,
    interventions: Iterable[Intervention | Arm] = (),
    strengths: "Sequence[float | int] | Mapping[str, Sequence[float | int]]" = (),
    measures: Iterable[Measure] = (),
    seeds: Sequence[int] = (0,),
    **how: Any,
) -> Study:
    """Return a study of any objects that have the methods of the protocols.

    >>> import personality_vector as pv
    >>> pv.study("builtin:demo", measures=[pv.Likelihood(...)]).run("runs/mine")  # doctest: +SKIP

    Args:
        base: Directory, Hub id or ``builtin:demo``.
        interventions: :class:`Intervention` objects, or :class:`Arm` where one has strengths of its
            own or an intervention for each seed.
        strengths: For all interventions; or label to strengths.
        measures: :class:`Measure` objects; judges are those that a measure names.
        seeds: Each is a repetition with other random numbers.
        **how: The fields of :class:`Study` from ``dtype`` on.

    Raises:
        CheckpointError: The base does not exist.
        RecipeError: A label has no strengths, or one that is not a step of it.
    """
    arms = tuple(
        one if isinstance(one, Arm) else Arm(one, _strengths_of(one.label, strengths))
        for one in interventions
    )
    unused = set(strengths if isinstance(strengths, Mapping) else ()) - {arm.label for arm in arms}
    if unused:
        raise RecipeError(
            f"strengths are given for {some(unused)}, but no intervention has this label"
        )
    return Study(Checkpoint.open(base), arms, tuple(measures), tuple(seeds), **how)


def _strengths_of(
    label: str, strengths: "Sequence[float | int] | Mapping[str, Sequence[float | int]]"
) -> Sequence[float | int]:
    if not isinstance(strengths, Mapping):
        return strengths
    if label not in strengths:
        raise RecipeError(f"{label}: has no strengths; strengths are given for {some(strengths)}")
    return strengths[label]
