"""The recipe of a profile: vectors, the shifts that are wanted, and how they are measured."""

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from personality_vector.measures.likelihood import LikelihoodSpec
from personality_vector.measures.spec import AnyMeasure
from personality_vector.merging.recipe import DeltaSpec, MergeRecipe
from personality_vector.recipes.schema import Device, Dtype, ModelRef, Real, Whole, Words
from personality_vector.study.recipe import Seeds
from personality_vector.subject import TemplatedRecipe
from personality_vector.traits import Trait

_PAIR = re.compile(
    r"\s*([a-z][a-z0-9_-]*)\s*=\s*([-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?)\s*"
)
_EXAMPLE = "extraversion=+0.6,neuroticism=-0.4"


def _target(value: Any) -> Any:
    """Return the wanted shift of each trait, which may be written as one text."""
    if not isinstance(value, str):
        return value
    found: dict[str, float] = {}
    for text in value.split(","):
        pair = _PAIR.fullmatch(text)
        if pair is None:
            raise ValueError(f"{text.strip()!r} is not trait=shift; write it like {_EXAMPLE}")
        if pair[1] in found:
            raise ValueError(f"{pair[1]} is given twice; give the shift of a trait once")
        found[pair[1]] = float(pair[2])
    return found


def _moving(target: dict[Trait, float]) -> dict[Trait, float]:
    if not any(target.values()):
        raise ValueError(f"needs a shift other than 0, such as {_EXAMPLE}")
    return target


Target = Annotated[
    dict[Words, Real], Field(min_length=1), BeforeValidator(_target), AfterValidator(_moving)
]
"""Trait to the wanted shift against the base, in the unit of the measure."""


class VectorSpec(DeltaSpec):
    """Says what may be merged, as a term of a merge recipe does, but for its alpha."""

    of: ModelRef | None = None
    label: str = ""


class ProfileRecipe(TemplatedRecipe):
    """Find the alphas at which a merge of ``terms`` shifts traits as ``target`` says.

    The keys from ``base`` to ``embeddings`` are those of a merge recipe, and ``seed`` is that of
    its random masks. A shift is against the base, in the unit of ``measure``: nats per token for
    the likelihood. Of several alphas that reach the target, those are taken which move the traits
    without a target least (``others: keep``), or the smallest (``free``). Where none reach it,
    keeping the others counts 0.3 times as much as coming nearer, or not at all. Each term is
    measured alone at ``step`` and ``-step``, no alpha exceeds ``most``, and at most ``tries``
    merges are measured.
    """

    base: ModelRef
    terms: tuple[VectorSpec, ...] = Field(min_length=1)
    method: str = "task_arithmetic"
    options: dict[str, Real | Whole | str | bool] = Field(default_factory=dict)
    seed: Whole = 0
    include: tuple[Words, ...] = ()
    exclude: tuple[Words, ...] = ()
    embeddings: Literal["strict", "skip", "match"] = "strict"
    target: Target
    measure: AnyMeasure = Field(default_factory=LikelihoodSpec)
    others: Literal["keep", "free"] = "keep"
    step: Real = Field(default=0.5, gt=0.0)
    most: Real = Field(default=2.0, gt=0.0)
    tries: Whole = Field(default=4, ge=1)
    seeds: Seeds = (0,)
    dtype: Dtype = "float32"
    device: Device = "auto"

    def merge(self, alphas: Sequence[float], terms: Sequence[int] | None = None) -> MergeRecipe:
        """Return the recipe of the merge of all terms, or of some by number, with these alphas."""
        chosen = range(len(self.terms)) if terms is None else terms
        weighted = [
            {**self.terms[number].model_dump(), "alpha": alpha}
            for number, alpha in zip(chosen, alphas, strict=True)
        ]
        shared = self.model_dump(include=_SHARED)
        return MergeRecipe.model_validate({**shared, "terms": weighted})


_SHARED = {"base", "method", "options", "seed", "include", "exclude", "embeddings"}
