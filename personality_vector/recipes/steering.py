"""The recipe of a steering vector: from chats as they are, or from a persona."""

from typing import Literal

from pydantic import Field, model_validator

from personality_vector.data.spec import DataSpec
from personality_vector.recipes.fields import Device, Dtype, Layers, PoleField, Real, Whole, Words
from personality_vector.recipes.paths import LocalPath, ModelRef
from personality_vector.recipes.reading import Recipe
from personality_vector.recipes.schema import GenerationSpec

Pooling = Literal["response_mean", "prompt_last", "prompt_mean"]
Estimator = Literal["mean_difference", "pca", "logistic"]
JudgeKind = Literal["none", "statements", "endpoint", "local", "recorded"]


def _changed(recipe: Recipe) -> list[str]:
    """Return the keys that have another value than their default."""
    fields = type(recipe).model_fields
    return [key for key, field in fields.items() if getattr(recipe, key) != field.default]


class RolloutSpec(GenerationSpec):
    """How a persona is called up: ``pairs`` x ``questions`` x ``samples`` replies on each side.

    ``pairs`` and ``questions`` take the first so many of the persona's; by default all.
    ``reuse`` names the ``rollouts.jsonl`` of an earlier run, whose replies are taken instead.

    Source:
        Persona vectors, Chen et al. 2025, arXiv:2507.21509: 10 samples at temperature 1, top_p 1,
        at most 1,000 tokens.
    """

    pairs: Whole | None = Field(default=None, ge=1)
    questions: Whole | None = Field(default=None, ge=1)
    samples: Whole = Field(default=10, ge=1)
    temperature: Real = Field(default=1.0, ge=0)
    max_new_tokens: Whole = Field(default=1000, ge=1)
    reuse: LocalPath | None = None

    @model_validator(mode="after")
    def _samples_differ(self) -> "RolloutSpec":
        if self.temperature == 0 and self.samples > 1:
            raise ValueError("at temperature 0 all samples are one reply: samples must be 1")
        return self


_KEYS_OF_JUDGE: dict[str, tuple[str, ...]] = {
    "none": (),
    "statements": ("statements", "held_out"),
    "endpoint": ("model", "base_url", "api_key_env", "requests"),
    "local": ("checkpoint", "batch_size"),
    "recorded": (),
}
"""Kind of judge to the keys that go with it; the first is required."""


class JudgeSpec(Recipe):
    """Who rates the replies from 0 to 100, for the persona and for coherence.

    ``none``: nobody, every pair is kept. ``statements``: a classifier that learns from labelled
    statements, offline. ``endpoint``: a model behind an OpenAI-compatible server that returns
    log-probabilities. ``local``: a checkpoint. ``recorded``: the ratings in ``rollouts.reuse``.
    """

    kind: JudgeKind = "none"
    statements: LocalPath | None = None
    held_out: Real = Field(default=0.2, gt=0.0, lt=1.0)
    model: Words | None = None
    base_url: Words | None = None
    api_key_env: Words = "OPENAI_API_KEY"
    requests: Whole = Field(default=16, ge=1)
    checkpoint: ModelRef | None = None
    batch_size: Whole = Field(default=8, ge=1)

    @model_validator(mode="after")
    def _keys_go_together(self) -> "JudgeSpec":
        own = _KEYS_OF_JUDGE[self.kind]
        if own and getattr(self, own[0]) is None:
            raise ValueError(f"a judge of kind {self.kind} needs the key {own[0]}")
        odd = [key for key in _changed(self) if key not in ("kind", *own)]
        if odd:
            raise ValueError(f"{odd[0]} does not go with a judge of kind {self.kind}")
        return self


class ThresholdSpec(Recipe):
    """What a pair of replies must reach to be kept, from 0 to 100.

    Kept iff positive trait >= ``trait``, negative trait < ``trait`` and both coherences >=
    ``coherence``. ``adaptive`` moves the trait's thresholds to the medians of the sides, as BILLY
    does.
    """

    trait: Real = Field(default=50.0, ge=0, le=100)
    coherence: Real = Field(default=50.0, ge=0, le=100)
    adaptive: bool = False


class SteerRecipe(Recipe):
    """Extract a steering vector: positive minus negative activations.

    The two sides are ``positive`` and ``negative`` data with their ``pole``; or answers of the
    model itself under the system prompts of a ``persona``, of which ``pole`` may choose the other
    end. ``rollouts``, ``judge``, ``thresholds`` and ``seed`` are for a persona only.
    """

    model: ModelRef
    pole: PoleField | None = None
    positive: DataSpec | None = None
    negative: DataSpec | None = None
    persona: LocalPath | None = None
    rollouts: RolloutSpec = RolloutSpec()
    judge: JudgeSpec = JudgeSpec()
    thresholds: ThresholdSpec = ThresholdSpec()
    seed: Whole = 0
    pooling: Pooling = "response_mean"
    estimator: Estimator = "mean_difference"
    layers: Layers | None = None
    batch_size: Whole = Field(default=16, ge=1)
    dtype: Dtype = "float32"
    device: Device = "auto"

    @model_validator(mode="after")
    def _one_form(self) -> "SteerRecipe":
        given = [side for side in (self.positive, self.negative) if side is not None]
        if (self.persona is None) == (not given):
            raise ValueError("give either persona, or positive and negative")
        if self.persona is None:
            if self.pole is None or len(given) < 2:
                raise ValueError("positive, negative and pole go together")
            for_persona = ("rollouts", "judge", "thresholds", "seed")
            odd = [key for key in _changed(self) if key in for_persona]
            if odd:
                raise ValueError(f"the key {odd[0]} goes with persona, not with data of both sides")
        return self

    @model_validator(mode="after")
    def _judge_has_what_it_needs(self) -> "SteerRecipe":
        if self.judge.kind == "none" and self.thresholds != ThresholdSpec():
            raise ValueError("thresholds need a judge; judge.kind is none")
        if self.judge.kind == "recorded" and self.rollouts.reuse is None:
            raise ValueError("a judge of kind recorded needs rollouts.reuse, where its ratings are")
        return self
