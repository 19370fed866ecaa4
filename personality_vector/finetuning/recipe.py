"""The recipe of a fine-tune."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from personality_vector.data.chats import DataSpec
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
    distinct,
)
from personality_vector.subject import TemplatedRecipe
from personality_vector.traits import Pole

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "big5_chat": {  # Li et al. 2024, arXiv:2410.16491
        "learning_rate": 1e-5,
        "epochs": 1,
        "max_length": 1024,
        "scheduler": "cosine",
        "warmup_steps": 20,
    },
    "persona_vectors": {  # Chen et al. 2025, arXiv:2507.21509, and its released configuration
        "lora": {"rank": 32, "alpha": 64, "rank_stabilised": True},
        "learning_rate": 1e-5,
        "epochs": 1,
        "batch_size": 2,
        "gradient_accumulation": 8,
        "max_length": 2048,
        "scheduler": "linear",
        "warmup_steps": 5,
        "weight_decay": 0.01,
    },
    "weight_steering": {  # Fierro and Roger 2025, arXiv:2511.05408
        "lora": {"rank": 32, "alpha": 16},
        "learning_rate": 1e-5,
        "max_steps": 100,
    },
}
"""Published settings by name. What a source does not say keeps our default."""


class LoraSpec(Recipe):
    """LoRA of PEFT; ``rank_stabilised`` scales by ``alpha / sqrt(rank)``, else ``alpha / rank``.

    ``dora`` learns the length of each row of a weight apart from its direction.
    """

    rank: Whole = Field(default=32, ge=1)
    alpha: Real = Field(default=64.0, gt=0)
    dropout: Real = Field(default=0.0, ge=0.0, lt=1.0)
    rank_stabilised: bool = False
    dora: bool = False
    target_modules: str | tuple[str, ...] = "all-linear"


class AdapterSpec(Recipe):
    """Another adapter of PEFT; ``options`` are the fields of its own config class."""

    type: Literal["ia3", "loha", "lokr", "oft", "vera"]
    options: dict[str, Any] = Field(default_factory=dict)


class SftSpec(Recipe):
    """Supervised fine-tuning, of every weight unless there is ``lora`` or another ``adapter``.

    A ``preset`` gives the settings of a source, which other keys override. ``max_steps`` is the
    number of updates, in place of ``epochs``. ``packing`` joins chats up to ``max_length`` tokens,
    which do not see each other. With ``evaluate_every`` so many steps, the loss on the held-out
    part of the data is measured; after ``patience`` evaluations without a better one, training
    stops, and the weights of the best are kept. A training that is interrupted resumes from the
    last of its ``checkpoints``; there are so many of them, evenly spaced. ``fsdp`` shards the
    weights over the processes of torchrun (FSDP2); otherwise each holds all of them. ``report_to``
    names trackers.
    """

    preset: Literal["big5_chat", "persona_vectors", "weight_steering"] | None = None
    lora: LoraSpec | None = None
    adapter: AdapterSpec | None = None
    epochs: Real = Field(default=1.0, gt=0)
    max_steps: Whole | None = Field(default=None, ge=1)
    learning_rate: Real = Field(default=1e-5, gt=0)
    batch_size: Whole = Field(default=16, ge=1)
    gradient_accumulation: Whole = Field(default=1, ge=1)
    max_length: Whole = Field(default=1024, ge=8)
    packing: bool = False
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: Whole = Field(default=0, ge=0)
    weight_decay: Real = Field(default=0.0, ge=0)
    dtype: Dtype = "float32"
    mixed_precision: Literal["no", "bfloat16"] = "no"
    gradient_checkpointing: bool = False
    evaluate_every: Whole | None = Field(default=None, ge=1)
    patience: Whole | None = Field(default=None, ge=1)
    checkpoints: Whole = Field(default=4, ge=0)
    fsdp: bool = False
    report_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, data: Any) -> Any:
        name = data.get("preset") if isinstance(data, Mapping) else None
        if not isinstance(name, str) or name not in PRESETS:
            return data
        preset = PRESETS[name]
        merged = {**preset, **data}
        if isinstance(data.get("lora"), Mapping):  # its keys override one by one, too
            merged["lora"] = {**preset.get("lora", {}), **data["lora"]}
        return merged

    @model_validator(mode="after")
    def _require_evaluation(self) -> "SftSpec":
        if self.patience is not None and self.evaluate_every is None:
            raise ValueError("patience counts evaluations; give evaluate_every, in steps")
        if self.lora and self.adapter:
            raise ValueError(
                "train lora or another adapter, not both (lora: null drops a preset's)"
            )
        return self

    @property
    def is_adapter(self) -> bool:
        """Whether an adapter is trained, and the model stays as it is."""
        return self.lora is not None or self.adapter is not None

    @property
    def is_low_rank(self) -> bool:
        """Whether its delta is a product of two factors."""
        return self.lora is not None and not self.lora.dora


Vectors = Annotated[
    tuple[LocalPath, ...],
    Field(min_length=1),
    BeforeValidator(lambda value: (value,) if isinstance(value, str | Path) else value),
]
"""Folders of steering vectors, in YAML a path or a list of paths."""


class SteerSpec(Recipe):
    """Steer the base at all tokens while it is trained, and only then.

    ``vector`` is a saved steering vector ``v``, and ``q = v / |v|``; ``layers`` are decoder blocks,
    ``-1`` the last. With ``add``, ``h + coefficient * v`` takes the place of the output ``h`` of a
    block; with ``ablate``, ``h - coefficient * (h . q) q``, where several vectors can be given;
    with ``regularise``, ``coefficient * s ** 2`` is added to the loss, where ``s`` is the mean of
    ``(h - h_base) . q`` over the learned tokens of a chat. Evaluations see the unsteered model.
    """

    vector: Vectors
    layers: Layers
    how: Literal["add", "ablate", "regularise"] = "add"
    coefficient: Real = 1.0

    @model_validator(mode="after")
    def _require_consistent(self) -> "SteerSpec":
        if len(self.vector) > 1 and self.how != "ablate":
            raise ValueError(f"how: {self.how} takes one vector; several can only be ablated")
        if self.how == "regularise" and self.coefficient < 0:
            raise ValueError(
                "coefficient: below 0, regularise would reward the shift; use 0 or more"
            )
        return self


def _poles(value: Any) -> Any:
    """Return poles, with both poles of a trait where only the trait is named."""
    if not isinstance(value, list | tuple):
        return value
    named = [
        [f"{one}:high", f"{one}:low"] if isinstance(one, str) and ":" not in one else [one]
        for one in value
    ]
    return tuple(pole for both in named for pole in both)


Poles = Annotated[
    tuple[PoleField, ...], Field(min_length=1), BeforeValidator(_poles), AfterValidator(distinct)
]
"""Poles such as ``extraversion:high``; a trait alone stands for both of its poles."""


class TrainRecipe(TemplatedRecipe):
    """Fine-tune ``base`` on one ``pole``, or on each of ``poles`` into a folder of its own.

    Of several, ``only`` some may be trained now. ``match_lengths`` takes as many replies of each
    length from a pole as its opposite has. ``delta`` also saves the delta of each pole and, where
    both poles of a trait are there, half their difference. ``workers`` poles are trained at once,
    each on a GPU of its own where there are several. ``steer`` acts on activations during training
    alone.
    """

    base: ModelRef
    pole: PoleField | None = None
    poles: Annotated[Poles | None, Field(exclude_if=lambda value: value is None)] = None
    only: Annotated[Poles | None, Field(exclude_if=lambda value: value is None)] = None
    data: DataSpec
    match_lengths: bool = False
    sft: SftSpec = SftSpec()
    steer: Annotated[SteerSpec | None, Field(exclude_if=lambda value: value is None)] = None
    delta: Annotated[bool, Field(exclude_if=lambda value: not value)] = False
    workers: Annotated[Whole, Field(ge=1, exclude_if=lambda value: value == 1)] = 1
    seed: Whole = 0
    device: Device = "auto"

    @model_validator(mode="after")
    def _require_poles(self) -> "TrainRecipe":
        if (self.pole is None) == (self.poles is None):
            raise ValueError("give either pole, or poles for several")
        if self.poles is None and (self.delta or self.only or self.workers > 1):
            raise ValueError("only, delta and workers go with poles, not with one pole")
        if self.poles and self.data.pole:
            raise ValueError("data.pole goes with pole, and not with poles")
        if self.sft.evaluate_every and self.data.part != "train":
            raise ValueError(
                f"sft.evaluate_every measures on the held-out part, which data.part: "
                f"{self.data.part} would train on; leave one of them out"
            )
        unknown = [str(pole) for pole in self.only or () if pole not in (self.poles or ())]
        if unknown:
            listed = ", ".join(map(str, self.poles or ()))
            raise ValueError(f"only: {unknown[0]} is not one of the poles, which are {listed}")
        return self

    @property
    def chosen(self) -> tuple[Pole, ...]:
        """The poles that are trained now."""
        return self.only or self.poles or ()

    @model_validator(mode="after")
    def _require_adapter(self) -> "TrainRecipe":
        regularises = self.steer is not None and self.steer.how == "regularise"
        if regularises and not self.sft.is_adapter:
            raise ValueError(
                "steer: regularise compares with the base, which is only there below an adapter; "
                "add sft.lora or sft.adapter"
            )
        return self

    def of(self, pole: Pole) -> "TrainRecipe":
        """Return the recipe of one of its poles."""
        alone = {"pole": pole, "poles": None, "only": None, "delta": False, "workers": 1}
        return self.model_copy(update=alone)
