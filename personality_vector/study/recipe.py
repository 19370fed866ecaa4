"""The recipes of studies (evaluation, sweep, comparison, choice), and opening one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from personality_vector.data.ideas import TASKS
from personality_vector.errors import CheckpointError, DataError, blame
from personality_vector.interventions.spec import AnyIntervention, InterventionSpec, enumerated
from personality_vector.interventions.stacked import opened
from personality_vector.manifest import MANIFEST
from personality_vector.measures.spec import (
    ASKED,
    IDEAS,
    KINDS,
    QUESTION,
    AnyMeasure,
    default_questions,
)
from personality_vector.recipes.schema import (
    Device,
    Dtype,
    Layers,
    LocalPath,
    ModelRef,
    PoleField,
    Real,
    Strengths,
    Whole,
    Words,
    distinct,
    schema_of,
)
from personality_vector.study.design import Arm, Design, Grid
from personality_vector.study.expansion import LEVEL, TRAIT, expanded, filled, names_pole
from personality_vector.study.matched import Axes, Matched
from personality_vector.subject import (
    Checkpoint,
    GenerationSpec,
    Intervention,
    Measure,
    Template,
    TemplatedRecipe,
)

if TYPE_CHECKING:
    from personality_vector.measures.likelihood import LikelihoodSpec
    from personality_vector.study.study import Study


def _share_questions(measures: Any) -> Any:
    """Give the questions of the first interview to every measure that names none.

    They are those about the traits that it rates. Without an interview they are the requests of
    the first measure of creativity.
    """
    if not isinstance(measures, list | tuple):
        return measures
    rows = [{row: {}} if isinstance(row, str) else row for row in measures]
    if not all(isinstance(row, Mapping) for row in rows):
        return measures
    interview, ideas = (_first(rows, kind) for kind in ("interview", "creativity"))
    shared = {key: interview[key] for key in ASKED if key in interview}
    shared |= default_questions(interview)
    if "traits" in interview:  # other interviews have traits of their own
        shared["about"] = interview["traits"]
    if not interview and any("creativity" in row for row in rows):
        shared = {"tasks": TASKS, "generation": IDEAS}
        shared |= {key: ideas[key] for key in ASKED if key in ideas}
    return [{key: _with(key, body, shared) for key, body in row.items()} for row in rows]


def _first(rows: Sequence[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
    """Return the options of the first measure of a kind that has some."""
    bodies = (row.get(kind) for row in rows)
    return next((body for body in bodies if body and isinstance(body, Mapping)), {})


def _with(key: Any, body: Any, shared: Mapping[str, Any]) -> Any:
    body = {} if body is None else body
    fields = schema_of(KINDS, key).model_fields if key in KINDS else {}
    # A measure with a question of its own, such as that of linguistic, keeps it.
    asks = set(ASKED) <= set(fields) and fields["question"].default == QUESTION
    if not asks or not isinstance(body, Mapping) or any(word in body for word in _OWN):
        return body
    return {**shared, **({"about": None} if key == "interview" else {}), **body}


_OWN = tuple(word for word in ASKED if word != "limit")
"""Keys with which a measure asks something of its own; a limit alone keeps what is shared."""

Measures = Annotated[tuple[AnyMeasure, ...], Field(min_length=1), BeforeValidator(_share_questions)]
Seeds = Annotated[tuple[Whole, ...], Field(min_length=1), AfterValidator(distinct)]


Interventions = Annotated[
    tuple[AnyIntervention, ...], Field(min_length=1), BeforeValidator(expanded)
]
"""Interventions of a recipe.

An intervention with ``{trait}`` or ``{level}`` in a text is repeated for each of its ``poles``, by
default the ten of the Big Five; see :mod:`personality_vector.study.expansion`.
"""


class StudyRecipe(TemplatedRecipe):
    """What all studies have: measures, seeds, and how the model is loaded.

    Strengths and seeds share batches where that changes no number: ``batch_strengths: auto``. With
    ``unrounded`` edits of weights in 16 bits do so too, and are not rounded to these, except on top
    of other interventions.
    """

    measures: Measures
    seeds: Seeds = (0,)
    dtype: Dtype = "float32"
    device: Device = "auto"
    batch_strengths: Literal["auto", "never", "unrounded"] = Field(
        default="auto", exclude_if=lambda value: value == "auto"
    )


class EvalRecipe(StudyRecipe):
    """Measure one model as it is."""

    model: ModelRef


class SweepRecipe(StudyRecipe):
    """Measure every intervention at every strength; no checkpoint is written.

    ``vectors`` is what ``{vectors}`` stands for in the interventions: a fine-tune, an adapter, a
    saved delta or a steering vector for each ``{trait}``, ``{level}`` and ``{seed}``.
    """

    base: ModelRef
    vectors: LocalPath | None = Field(default=None, exclude=True)
    interventions: Interventions
    strengths: Strengths | None = None

    @model_validator(mode="after")
    def _all_have_strengths(self) -> "SweepRecipe":
        lacking = [spec.label for spec in self.interventions if not spec.strengths]
        if self.strengths is None and lacking:
            raise ValueError(
                f"{lacking[0]} has no strengths; give them to it, or to all interventions"
            )
        return self


class CompareRecipe(SweepRecipe):
    """A sweep, then the strengths at which the interventions have the same effect or cost.

    The effect is the shift of the first likelihood measure towards ``pole``; ``match`` lists other
    numbers in which the interventions are made equal. ``points`` are the targets of each. The
    measures named in ``where_matched`` are taken there and of the base, and not on the grid. In
    interventions and measures, ``{trait}`` and ``{level}`` are those of ``pole``.
    """

    pole: PoleField
    points: Whole = Field(default=4, ge=1)
    match: Axes = ()
    where_matched: tuple[Words, ...] = Field(default=(), exclude_if=lambda value: not value)

    @model_validator(mode="before")
    @classmethod
    def _of_its_pole(cls, data: Any) -> Any:
        """Let ``{trait}`` and ``{level}`` be those of the pole."""
        rows = data.get("interventions") if isinstance(data, Mapping) else None
        if not isinstance(rows, list | tuple) or data.get("pole") is None:
            return data
        trait, _, level = str(data["pole"]).partition(":")
        own = {"poles": [str(data["pole"])]}
        named = {"interventions": [own | row if names_pole(row) else row for row in rows]}
        if "measures" in data:
            named["measures"] = filled(data["measures"], {TRAIT: trait, LEVEL: level})
        return {**data, **named}

    @model_validator(mode="after")
    def _measured(self) -> "CompareRecipe":
        found = _likelihoods(self)
        if not found:
            raise ValueError("a comparison needs a likelihood among its measures")
        if self.pole.trait not in found[0].traits:
            raise ValueError(
                f"the likelihood's traits do not list {self.pole.trait}, the trait of pole"
            )
        for axis in (found[0].called, *(axis.number for axis in self.match)):
            if any(f"{axis} ".startswith((f"{name}.", f"{name} ")) for name in self.where_matched):
                raise ValueError(
                    f"where_matched: {axis} is needed on the grid, since interventions are made "
                    "equal by it; take its measure out"
                )
        return self


def _outwards(shares: tuple[float, ...]) -> tuple[float, ...]:
    if any(later <= earlier for earlier, later in zip((0.0, *shares), shares, strict=False)):
        raise ValueError("shares must rise from above 0, such as [0.05, 0.1, 0.2]")
    return shares


Shares = Annotated[tuple[Real, ...], Field(min_length=1), AfterValidator(_outwards)]


class ChooseRecipe(TemplatedRecipe):
    """Choose the layer and the range of coefficients of a steering vector.

    ``statements`` of ``part`` decide: half of them, by a hash of their text, rank the layers and
    measure the trait; the judge learns from the other half. Report on the other part. ``shares``
    are strengths in both directions, as shares of the median norm of the residual stream.
    """

    model: ModelRef
    vector: LocalPath
    pole: PoleField | None = None
    statements: LocalPath
    part: Literal["train", "held_out"] = "train"
    held_out: Real = Field(default=0.2, gt=0.0, lt=1.0)
    limit: Whole | None = Field(default=100, ge=2)
    question: Words = QUESTION
    instrument: LocalPath | None = None
    generation: GenerationSpec = GenerationSpec()
    layers: Layers | None = None
    positions: Words = "all"
    verify: Whole = Field(default=3, ge=1)
    shares: Shares = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.2)
    floor: Real = Field(default=0.5, gt=0.0, lt=1.0)
    batch_size: Whole = Field(default=16, ge=1)
    seed: Whole = 0
    dtype: Dtype = "float32"
    device: Device = "auto"


def _likelihoods(recipe: StudyRecipe) -> "list[LikelihoodSpec]":
    return [cast("LikelihoodSpec", spec) for spec in recipe.measures if spec.key == "likelihood"]


def open_study(recipe: EvalRecipe | SweepRecipe) -> "Study":
    """Return the study that a recipe describes; no model is loaded.

    Raises:
        PersonalityVectorError: An input is missing, unreadable or of another base.
    """
    if isinstance(recipe, SweepRecipe):
        _require_vectors(recipe)
    from personality_vector import checkpoint
    from personality_vector.study.study import Study
    from personality_vector.subject.models import load_tokenizer

    base = checkpoint.Checkpoint.open(
        recipe.base if isinstance(recipe, SweepRecipe) else recipe.model
    )
    if recipe.template != Template():
        load_tokenizer(base.path, recipe.template)  # refused before anything is measured
    measures = tuple(spec.open() for spec in recipe.measures)
    return Study(
        base,
        _arms(recipe, base) if isinstance(recipe, SweepRecipe) else (),
        measures,
        recipe.seeds,
        recipe.dtype,
        recipe.device,
        _design(recipe, measures),
        recipe.model_dump(mode="json"),
        recipe.template,
        recipe.batch_strengths,
        recipe.where_matched if isinstance(recipe, CompareRecipe) else (),
    )


def _design(recipe: StudyRecipe, measures: Sequence[Measure]) -> Design:
    if not isinstance(recipe, CompareRecipe):
        return Grid()
    probe = _likelihoods(recipe)[0].of_trait(recipe.pole.trait).open()
    return Matched(recipe.pole, recipe.match, recipe.points, measures, probe)


def _arms(recipe: SweepRecipe, base: Checkpoint) -> tuple[Arm, ...]:
    """Open the interventions; none may be measured on statements that it was trained on."""
    for given in recipe.interventions:
        for tuned in _tuned(given.model_dump(mode="json")):
            for spec in _likelihoods(recipe):
                require_trained_on_the_rest(Path(tuned), spec)
    return tuple(_arm(spec, recipe, base) for spec in recipe.interventions)


def _arm(spec: InterventionSpec, recipe: SweepRecipe, base: Checkpoint) -> Arm:
    strengths = spec.strengths or recipe.strengths or ()
    with blame(intervention=spec.label):
        found: Intervention | dict[int, Intervention] = (
            {seed: opened(spec.at_seed(seed), base) for seed in recipe.seeds}
            if spec.has_seed
            else opened(spec, base)
        )
        arm = Arm(found, strengths, spec.poles, spec.group)
    if arm.is_base_at_zero or 0.0 in arm.strengths or not isinstance(recipe, CompareRecipe):
        return arm
    return replace(arm, strengths=(0.0, *arm.strengths))  # where the curve of a hybrid begins


def _require_vectors(recipe: SweepRecipe) -> None:
    """Check that there is something wherever a path of ``vectors`` leads.

    Raises:
        CheckpointError: It names all that are missing.
    """
    if recipe.vectors is None:
        return
    is_vector = re.compile(re.sub(r"\\\{[a-z]+\\\}", "[^/]+", re.escape(str(recipe.vectors))))
    specs = [
        spec.at_seed(seed) if spec.has_seed else spec
        for spec in recipe.interventions
        for seed in recipe.seeds
    ]
    texts = {text for spec in specs for text in _texts(spec.model_dump(mode="json"))}
    missing = sorted(t for t in texts if is_vector.fullmatch(t) and not Path(t).exists())
    if missing:
        raise CheckpointError(
            f"{enumerated(missing)}: no such {'folder' if len(missing) == 1 else 'folders'}; train "
            "these vectors first, or say with vectors where they are"
        )


def _texts(data: Any) -> list[str]:
    """Return every text in an intervention, at any depth."""
    if isinstance(data, str):
        return [data]
    inner = data.values() if isinstance(data, dict) else data if isinstance(data, list) else ()
    return [text for each in inner for text in _texts(each)]


def _tuned(data: Any) -> list[str]:
    """Return every fine-tuned model that an intervention names, at any depth."""
    if isinstance(data, dict):
        own = [data["tuned"]] if isinstance(data.get("tuned"), str) else []
        return own + _tuned(list(data.values()))
    return [found for each in data for found in _tuned(each)] if isinstance(data, list) else []


def require_trained_on_the_rest(tuned: Path, measure: "LikelihoodSpec") -> None:
    """Check that a fine-tune of ours was not trained on the statements that measure it.

    Raises:
        DataError: Its recipe split the same statements differently.
    """
    from personality_vector.checkpoint.folder import read_json

    manifest = tuned / MANIFEST
    data = read_json(manifest).get("recipe", {}).get("data") if manifest.is_file() else None
    if not isinstance(data, dict) or data.get("format") != "statements":
        return
    ours, theirs = measure.statements.resolve(), Path(str(data.get("source"))).resolve()
    is_same = ours == theirs or ours in theirs.parents or theirs in ours.parents
    if is_same and (data.get("part"), data.get("held_out")) != ("train", measure.held_out):
        raise DataError(
            f"{tuned}: was trained on part {data.get('part')} with held_out "
            f"{data.get('held_out')} of {theirs}; {measure.called}.held_out {measure.held_out} "
            "would measure it on its own training text"
        )
