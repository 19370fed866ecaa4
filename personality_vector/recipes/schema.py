"""The schema of every recipe. A field's default is the default; there is no other."""

from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    Field,
    model_validator,
)

from personality_vector.merging.recipe import TermSpec
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


class GateSpec(Recipe):
    """Steer only chats whose prompt is similar to a direction; see ``steering.Gate``.

    The direction is that of a saved steering vector at ``layer``, a 0-based decoder block.
    """

    vector: LocalPath
    layer: Whole = Field(ge=0)
    threshold: Real = Field(ge=-1, le=1)
    side: Literal["above", "below"] = "above"


KINDS = ("delta", "tuned", "terms", "vector", "prompt", "portrait", "roles", "neurons")
"""The keys that say what an intervention is."""

_KINDS_WITH = {
    "positions": ("vector", "neurons"),
    "how": ("vector",),
    "gate": ("vector",),
    "incremental": ("vector",),
    "adjectives": ("prompt",),
    "seed": ("prompt",),
}
"""The keys that say how, and the kinds that take them."""


class InterventionSpec(Recipe):
    """One thing done to the base: an edit of weights or activations, or a prompt.

    ``delta``, ``tuned`` and ``terms`` edit weights. ``vector`` steers the output of ``layers``,
    ``neurons`` those of MLPs, both at ``positions``, such as ``last 1 + response``; by default a
    vector steers all tokens, neurons the response. ``incremental`` adds at each layer only what
    the vector gains since the layer before. ``prompt`` names a pole by ``adjectives``, which a
    ``seed`` draws; ``portrait`` describes it; ``roles`` are persons such as ``a futurist``.
    """

    label: str
    delta: LocalPath | None = None
    tuned: ModelRef | None = None
    terms: tuple[TermSpec, ...] = ()
    vector: LocalPath | None = None
    layers: Annotated[tuple[Whole, ...], AfterValidator(distinct)] = ()
    prompt: PoleField | None = None
    portrait: PoleField | None = None
    roles: Annotated[tuple[Words, ...], AfterValidator(distinct)] = ()
    neurons: LocalPath | None = None
    positions: Words | None = None
    how: Literal["add", "add_keeping_norm", "ablate"] = "add"
    gate: GateSpec | None = None
    incremental: bool = False
    adjectives: Whole = Field(default=3, ge=1)
    seed: Whole | None = None
    strengths: Strengths | None = None

    @property
    def kind(self) -> str:
        """The one of :data:`KINDS` that is given."""
        return next(kind for kind in KINDS if getattr(self, kind) not in (None, ()))

    @model_validator(mode="after")
    def _one_kind(self) -> "InterventionSpec":
        if self.label == "base" or MATCHED in self.label or not self.label.strip():
            raise ValueError(f"the label {self.label!r} is taken; results use it for themselves")
        if sum(getattr(self, kind) not in (None, ()) for kind in KINDS) != 1:
            raise ValueError(f"give exactly one of {', '.join(KINDS[:-1])} or {KINDS[-1]}")
        if any(term.of or not isinstance(term.alpha, float) for term in self.terms):
            raise ValueError("here a term has one alpha for all layers, and no of")
        if (self.vector is not None) != bool(self.layers):
            raise ValueError("vector and layers go together, such as layers: [12]")
        return self

    @model_validator(mode="after")
    def _options_of_its_kind(self) -> "InterventionSpec":
        for key, kinds in _KINDS_WITH.items():
            is_given = getattr(self, key) != type(self).model_fields[key].default
            if is_given and self.kind not in kinds:
                raise ValueError(f"{key} goes with {' or '.join(kinds)}, not with {self.kind}")
        if self.gate is not None and self.positions != "response":
            raise ValueError("a gate is decided by the whole prompt; add positions: response")
        if self.incremental and min(self.layers) < 0:
            raise ValueError("with incremental, layers are counted from 0")
        return self


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
    interventions: tuple[InterventionSpec, ...] = Field(min_length=1)
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
