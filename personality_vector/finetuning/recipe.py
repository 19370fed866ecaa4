"""The recipe of a fine-tune."""

from typing import Literal

from pydantic import Field

from personality_vector.data.chats import DataSpec
from personality_vector.recipes.schema import (
    Device,
    Dtype,
    ModelRef,
    PoleField,
    Real,
    Recipe,
    Whole,
)
from personality_vector.subject import TemplatedRecipe


class LoraSpec(Recipe):
    """LoRA of PEFT; ``rank_stabilised`` scales by ``alpha / sqrt(rank)``, else ``alpha / rank``."""

    rank: Whole = Field(default=32, ge=1)
    alpha: Real = Field(default=64.0, gt=0)
    dropout: Real = Field(default=0.0, ge=0.0, lt=1.0)
    rank_stabilised: bool = False
    target_modules: str | tuple[str, ...] = "all-linear"


class SftSpec(Recipe):
    """Supervised fine-tuning; ``lora: null`` trains every weight."""

    lora: LoraSpec | None = None
    epochs: Real = Field(default=1.0, gt=0)
    learning_rate: Real = Field(default=1e-5, gt=0)
    batch_size: Whole = Field(default=16, ge=1)
    gradient_accumulation: Whole = Field(default=1, ge=1)
    max_length: Whole = Field(default=1024, ge=8)
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    warmup_steps: Whole = Field(default=0, ge=0)
    weight_decay: Real = Field(default=0.0, ge=0)
    dtype: Dtype = "float32"
    mixed_precision: Literal["no", "bfloat16"] = "no"
    gradient_checkpointing: bool = False


class TrainRecipe(TemplatedRecipe):
    """Fine-tune ``base`` on one pole."""

    base: ModelRef
    pole: PoleField
    data: DataSpec
    sft: SftSpec = SftSpec()
    seed: Whole = 0
    device: Device = "auto"
