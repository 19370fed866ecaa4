"""The recipe of a choice of layer and strengths."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from personality_vector.measures.asking import QUESTION
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
    Words,
)
from personality_vector.subject.spec import GenerationSpec


def _outwards(shares: tuple[float, ...]) -> tuple[float, ...]:
    if any(later <= earlier for earlier, later in zip((0.0, *shares), shares, strict=False)):
        raise ValueError("shares go outwards from 0, such as [0.05, 0.1, 0.2]")
    return shares


class ChooseRecipe(Recipe):
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
    shares: Annotated[tuple[Real, ...], Field(min_length=1), AfterValidator(_outwards)] = (
        0.05,
        0.1,
        0.2,
        0.3,
        0.4,
        0.6,
        0.8,
        1.2,
    )
    floor: Real = Field(default=0.5, gt=0.0, lt=1.0)
    batch_size: Whole = Field(default=16, ge=1)
    seed: Whole = 0
    dtype: Dtype = "float32"
    device: Device = "auto"
