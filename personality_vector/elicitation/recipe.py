"""Recipes of steering vectors, and of the chats of a persona."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from personality_vector.data.chats import DataSpec
from personality_vector.data.personas import Persona
from personality_vector.judges.spec import KINDS, JudgeSpec
from personality_vector.recipes.schema import (
    Device,
    Dtype,
    Layers,
    LocalPath,
    ModelRef,
    PoleField,
    Real,
    Recipe,
    Whole,
    by_only_key,
    located,
)
from personality_vector.subject import GenerationSpec, TemplatedRecipe


def _judge(value: Any, info: Any) -> Any:
    return value if value in ("none", "recorded") else by_only_key(KINDS, value, info, "a judge")


JudgeField = Annotated[
    Literal["none", "recorded"] | SerializeAsAny[JudgeSpec], BeforeValidator(_judge)
]
"""A judge by its key; ``none``; or ``recorded``, for the ratings of an earlier run."""


class RolloutSpec(GenerationSpec):
    """How a persona is elicited: ``pairs`` x ``questions`` x ``samples`` replies on each side.

    ``pairs`` and ``questions`` take that many of the persona's, from the first; by default all.
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


class ThresholdSpec(Recipe):
    """The ratings that a pair of replies must reach to be kept, from 0 to 100.

    Kept iff positive trait >= ``trait``, negative trait < ``trait`` and both coherences >=
    ``coherence``. ``adaptive`` moves the trait's thresholds to the medians of the sides, as BILLY
    does. With ``paired: false`` each reply is kept or dropped alone, which BILLY does as well.
    ``unscored: keep`` keeps a reply that the judge cannot rate.
    """

    trait: Real = Field(default=50.0, ge=0, le=100)
    coherence: Real = Field(default=50.0, ge=0, le=100)
    adaptive: bool = False
    paired: bool = True
    unscored: Literal["drop", "keep"] = "drop"


def _persona(value: Any, info: Any) -> Any:
    return value if isinstance(value, Mapping | Persona) else located(value, info)


PersonaField = Annotated[Persona | Path, BeforeValidator(_persona)]
"""A persona, or the file that it is in."""


class PersonaRecipe(TemplatedRecipe):
    """Ask ``model`` as a ``persona`` and as its opposite, and keep what shows it.

    ``pole`` may choose the other end of the persona. The ``judge`` rates every reply for the
    persona and for coherence; with ``none``, every pair is kept.
    """

    model: ModelRef
    pole: PoleField | None = None
    persona: PersonaField | None = None
    rollouts: RolloutSpec = RolloutSpec()
    judge: JudgeField = "none"
    thresholds: ThresholdSpec = ThresholdSpec()
    seed: Whole = 0
    dtype: Dtype = "float32"
    device: Device = "auto"

    @model_validator(mode="after")
    def _require_judge(self) -> "PersonaRecipe":
        if self.judge == "none" and self.thresholds != ThresholdSpec(paired=self.thresholds.paired):
            raise ValueError("thresholds need a judge, but judge is none")
        if self.judge == "recorded" and self.rollouts.reuse is None:
            raise ValueError("judge: recorded needs rollouts.reuse, where the ratings are")
        return self


Grade = Literal["mild", "normal", "strong"]
"""How strongly a persona is to show; ``normal`` adds no word to its system prompts."""


class ElicitRecipe(PersonaRecipe):
    """Chats of a persona and of its opposite, without the system prompts that elicited them.

    ``grade`` asks for a mild or a strong form of both. ``held_out`` is the share of the questions
    for extraction whose chats are held out from training. The questions for evaluation are asked
    as well, once for each pair of system prompts.
    """

    persona: PersonaField
    grade: Grade = "normal"
    held_out: Real = Field(default=0.2, ge=0.0, lt=1.0)


class SteerRecipe(PersonaRecipe):
    """Extract a steering vector: positive minus negative activations.

    The two sides are ``positive`` and ``negative`` data with their ``pole``, or replies of the
    model under the system prompts of a ``persona``. ``rollouts``, ``judge``, ``thresholds`` and
    ``seed`` are for a persona only.
    """

    positive: DataSpec | None = None
    negative: DataSpec | None = None
    pooling: Literal["response_mean", "prompt_last", "prompt_mean"] = "response_mean"
    estimator: Literal["mean_difference", "pca", "logistic"] = "mean_difference"
    layers: Layers | None = None
    batch_size: Whole = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _require_sides(self) -> "SteerRecipe":
        given = [side for side in (self.positive, self.negative) if side is not None]
        if (self.persona is None) == (not given):
            raise ValueError("give either persona, or positive and negative")
        if self.persona is None:
            if self.pole is None or len(given) < 2:
                raise ValueError("positive, negative and pole go together")
            for key in ("rollouts", "judge", "thresholds", "seed"):
                if getattr(self, key) != type(self).model_fields[key].default:
                    raise ValueError(
                        f"the key {key} goes with persona, not with data of both sides"
                    )
        elif self.estimator == "pca" and not self.thresholds.paired:
            raise ValueError("estimator: pca needs pairs, and thresholds.paired is false")
        return self
