"""The recipes of studies: an evaluation, a sweep, a comparison."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from personality_vector.errors import TraitError
from personality_vector.interventions.spec import AnyIntervention
from personality_vector.measures.asking import ASKED, AskingSpec
from personality_vector.measures.spec import KINDS, AnyMeasure
from personality_vector.recipes.schema import (
    Device,
    Dtype,
    ModelRef,
    PoleField,
    Recipe,
    Strengths,
    Whole,
    distinct,
    schema_of,
)
from personality_vector.traits import BIG_FIVE_POLES, Pole

TRAIT, LEVEL = "{trait}", "{level}"
"""In an intervention: one for each pole, or for each trait."""


def _asked_alike(measures: Any) -> Any:
    """Let a measure that does not say what it asks, ask what the first interview does."""
    if not isinstance(measures, list | tuple):
        return measures
    rows = [{row: {}} if isinstance(row, str) else row for row in measures]
    if not all(isinstance(row, Mapping) for row in rows):
        return measures
    interview: Mapping[str, Any] = next(
        (row["interview"] for row in rows if row.get("interview")), {}
    )
    shared = {key: interview[key] for key in ASKED if key in interview}
    return [{key: _with(key, body, shared) for key, body in row.items()} for row in rows]


def _with(key: Any, body: Any, shared: Mapping[str, Any]) -> Any:
    body = {} if body is None else body
    asks = key in KINDS and issubclass(schema_of(KINDS, key), AskingSpec)
    if not asks or not isinstance(body, Mapping) or any(word in body for word in ASKED):
        return body
    return {**shared, **body}


Measures = Annotated[tuple[AnyMeasure, ...], Field(min_length=1), BeforeValidator(_asked_alike)]
Seeds = Annotated[tuple[Whole, ...], Field(min_length=1), AfterValidator(distinct)]


def _expanded(interventions: Any) -> Any:
    """Return interventions, with one for each pole where there was ``{trait}`` or ``{level}``."""
    if not isinstance(interventions, list | tuple):
        return interventions
    return [row for given in interventions for row in _for_each_pole(given)]


def _for_each_pole(given: Any) -> list[Any]:
    words = [word for word in (TRAIT, LEVEL) if word in str(given)]
    if not isinstance(given, Mapping) or not words:
        return [given]
    rest = {key: value for key, value in given.items() if key != "poles"}
    row = {"label": ":".join(words), **rest}
    found: list[Any] = []
    for pole in _poles_of(given):
        filled = _filled(row, pole)
        # What names the trait alone is the same for both of its poles.
        if filled not in found:
            found.append(filled)
    return found


def _poles_of(given: Mapping[str, Any]) -> Sequence[Pole]:
    poles = given.get("poles")
    if poles is None:
        return BIG_FIVE_POLES
    if not isinstance(poles, list | tuple) or not poles:
        raise ValueError(f"poles: a list of poles, such as [extraversion:high], not {poles!r:.40}")
    try:
        return [Pole.parse(str(pole)) for pole in poles]
    except TraitError as error:
        raise ValueError(f"poles: {error}") from error


def _filled(value: Any, pole: Pole) -> Any:
    """Return data with the names of a pole in its texts, which stay marked as they were given."""
    if isinstance(value, str):
        return type(value)(value.replace(TRAIT, pole.trait).replace(LEVEL, pole.level))
    if isinstance(value, Mapping):
        return {key: _filled(each, pole) for key, each in value.items()}
    return [_filled(each, pole) for each in value] if isinstance(value, list) else value


Interventions = Annotated[
    tuple[AnyIntervention, ...], Field(min_length=1), BeforeValidator(_expanded)
]
"""Interventions of a recipe.

One that has ``{trait}`` or ``{level}`` in a text stands for one for each of its ``poles``, by
default the ten of the Big Five.
"""


class StudyRecipe(Recipe):
    """What all studies have: measures, seeds, and how the model is loaded."""

    measures: Measures
    seeds: Seeds = (0,)
    dtype: Dtype = "float32"
    device: Device = "auto"

    @model_validator(mode="after")
    def _names_differ(self) -> "StudyRecipe":
        names = [spec.called for spec in self.measures]
        repeated = [name for name in names if names.count(name) > 1]
        if repeated:
            raise ValueError(f"two measures are called {repeated[0]}; give one of them a name")
        return self


class EvalRecipe(StudyRecipe):
    """Measure one model as it is."""

    model: ModelRef


class SweepRecipe(StudyRecipe):
    """Measure every intervention at every strength; no checkpoint is written."""

    base: ModelRef
    interventions: Interventions
    strengths: Strengths | None = None

    @model_validator(mode="after")
    def _are_told_apart(self) -> "SweepRecipe":
        labels = [spec.label for spec in self.interventions]
        repeated = [label for label in labels if labels.count(label) > 1]
        if repeated:
            raise ValueError(f"two interventions have the same label, {repeated[0]!r}")
        lacking = [spec.label for spec in self.interventions if not spec.strengths]
        if self.strengths is None and lacking:
            raise ValueError(f"{lacking[0]} has no strengths; give them there, or for all")
        return self


class CompareRecipe(SweepRecipe):
    """A sweep, then the strengths at which the interventions move ``pole`` equally far.

    The effect is the shift of the first likelihood measure, towards the pole.
    """

    pole: PoleField
    points: Whole = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _measured(self) -> "CompareRecipe":
        found = next((spec for spec in self.measures if spec.key == "likelihood"), None)
        if found is None:
            raise ValueError("a comparison needs a likelihood among its measures")
        if self.pole.trait not in getattr(found, "traits", ()):
            raise ValueError(
                f"the likelihood's traits do not list {self.pole.trait}, the trait of pole"
            )
        return self
