"""The recipe of a merge."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from personality_vector.lab import expanded
from personality_vector.recipes.schema import (
    Device,
    LocalPath,
    ModelRef,
    Real,
    Recipe,
    Size,
    Whole,
    Words,
)


class DeltaSpec(Recipe):
    """Says where a delta lies: ``delta`` is a saved one, ``tuned`` a fine-tune or an adapter."""

    delta: LocalPath | None = None
    tuned: ModelRef | None = None

    @property
    def source(self) -> str | Path:
        """Whichever of the two is given."""
        return self.delta if self.delta is not None else str(self.tuned)

    @model_validator(mode="after")
    def _one_source(self) -> "DeltaSpec":
        if (self.delta is None) == (self.tuned is None):
            raise ValueError("give either delta (a saved delta) or tuned (a checkpoint or adapter)")
        return self


class TermSpec(DeltaSpec):
    """Says what a term of a merge is: a saved delta, or whatever was fine-tuned, and its alpha.

    ``alpha`` is a number; or numbers from the first layer to the last, interpolated; or numbers
    by word (``embeddings``, ``head``, ``norms``) or name pattern, of which the first that matches
    counts. ``of`` is the base that the delta was taken from, where it is not that of the recipe.
    """

    of: ModelRef | None = None
    alpha: (
        Real
        | Annotated[tuple[Real, ...], Field(min_length=1)]
        | Annotated[dict[str, Real], Field(min_length=1)]
    )
    label: str = ""


class OutputSpec(Recipe):
    """Says how merged tensors are written."""

    dtype: Literal["same", "float32", "bfloat16", "float16"] = "same"
    rounding: Literal["nearest", "stochastic"] = "nearest"
    shard_size: Size = "5GB"


class MergeRecipe(Recipe):
    """``base + method(alpha_1 * delta_1, ...)``."""

    base: ModelRef
    method: str = "task_arithmetic"
    options: dict[str, Real | Whole | str | bool] = Field(default_factory=dict)
    seed: Whole = 0
    terms: tuple[TermSpec, ...] = Field(min_length=1)
    include: tuple[Words, ...] = ()
    exclude: tuple[Words, ...] = ()
    embeddings: Literal["strict", "skip", "match"] = "strict"
    output: OutputSpec = OutputSpec()
    device: Device = "auto"

    @property
    def models(self) -> list[Path]:
        """Every checkpoint that is named: directories, or what looks like one."""
        named = {self.base, *(model for term in self.terms for model in (term.tuned, term.of))}
        return [expanded(model) for model in sorted(filter(None, named))]


def is_mergekit(data: Mapping[str, Any]) -> bool:
    """Whether a YAML is one of mergekit's: ours says ``method``, theirs ``merge_method``."""
    return "merge_method" in data
