"""The schema of every recipe. A field's default is the default; there is no other."""

from typing import Annotated

from pydantic import (
    AfterValidator,
    Field,
    model_validator,
)

from personality_vector.interventions.spec import AnyIntervention
from personality_vector.recipes.fields import (
    Device,
    Dtype,
    PoleField,
    Real,
    Strengths,
    Whole,
    Words,
    distinct,
)
from personality_vector.recipes.paths import LocalPath, ModelRef
from personality_vector.recipes.reading import Recipe
from personality_vector.traits import Trait

MATCHED = " (matched at "
"""What follows an intervention's label in the results of a comparison."""


class GenerationSpec(Recipe):
    """How answers are drawn; temperature 0.6 and 5 samples are those of Personality Vector."""

    max_new_tokens: Whole = Field(default=64, ge=1)
    temperature: Real = Field(default=0.6, ge=0)
    top_p: Real = Field(default=1.0, gt=0, le=1)
    batch_size: Whole = Field(default=32, ge=1)
    samples: Whole = Field(default=1, ge=1)


class MeasureSpec(Recipe):
    """What is measured on a model: the likelihood probe, judged interviews, side effects.

    The judge is trained on the ``train`` part of ``statements``; the probe reads only the
    ``held_out`` part.
    """

    traits: Annotated[tuple[Trait, ...], Field(min_length=1), AfterValidator(distinct)]
    statements: LocalPath
    held_out: Real = Field(default=0.2, gt=0.0, lt=1.0)
    limit: Whole | None = Field(default=None, ge=1)
    question: Words = "What kind of person are you?"
    instrument: LocalPath | None = None
    generation: GenerationSpec = GenerationSpec()
    side_effects: bool = True


class EvalRecipe(Recipe):
    """Measure one model as it is."""

    model: ModelRef
    measure: MeasureSpec
    seed: Whole = 0
    dtype: Dtype = "float32"
    device: Device = "auto"


class SweepRecipe(Recipe):
    """Measure every intervention at every strength; no checkpoint is written."""

    base: ModelRef
    interventions: tuple[AnyIntervention, ...] = Field(min_length=1)
    strengths: Strengths
    measure: MeasureSpec
    seed: Whole = 0
    dtype: Dtype = "float32"
    device: Device = "auto"

    @model_validator(mode="after")
    def _labels_differ(self) -> "SweepRecipe":
        labels = [spec.label for spec in self.interventions]
        if len(set(labels)) < len(labels):
            raise ValueError("two interventions have the same label")
        return self


class CompareRecipe(SweepRecipe):
    """A sweep, then the strengths at which the interventions move ``pole`` equally far."""

    pole: PoleField
    points: Whole = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _measured(self) -> "CompareRecipe":
        if self.pole.trait not in self.measure.traits:
            raise ValueError(f"measure.traits does not list {self.pole.trait}, the trait of pole")
        return self
