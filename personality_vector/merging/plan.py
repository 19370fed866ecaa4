"""The plan of a merge: what would be done, checked before any weight is read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch

from personality_vector.checkpoint import Checkpoint, TensorPlan, parse_size
from personality_vector.delta import Delta, open_delta
from personality_vector.errors import NonFiniteError, RecipeError
from personality_vector.merging.methods import METHODS, Combine, OptionValue, find_method
from personality_vector.merging.rounding import Rounding
from personality_vector.merging.select import magnitude_threshold
from personality_vector.models import DTYPES
from personality_vector.recipes import MergeRecipe


@dataclass(frozen=True, slots=True)
class Output:
    """How merged tensors are written: dtype (``same`` as the base), rounding, shard size."""

    dtype: str = "same"
    rounding: Rounding = "nearest"
    shard_size: str = "5GB"

    def __post_init__(self) -> None:
        if self.dtype not in ("same", *DTYPES):
            known = ", ".join(("same", *DTYPES))
            raise RecipeError(f"output.dtype must be one of {known}, got {self.dtype!r}")
        if self.rounding not in get_args(Rounding):
            raise RecipeError(f"output.rounding must be nearest or stochastic: {self.rounding!r}")
        parse_size(self.shard_size)


@dataclass(slots=True)
class Term:
    """A delta and its alpha, with the magnitude thresholds already found for it."""

    delta: Delta
    alpha: float
    thresholds: dict[float, float] = field(default_factory=dict)

    def global_threshold(self, density: float) -> float:
        """Return the magnitude that the top ``density`` of the whole vector reaches."""
        if density not in self.thresholds:
            self.thresholds[density] = magnitude_threshold(
                lambda: (self.delta[name] for name in self.delta.names), density
            )
        return self.thresholds[density]


@dataclass(frozen=True, slots=True)
class MergePlan:
    """A merge that has been checked and not yet begun."""

    base: Checkpoint
    terms: tuple[Term, ...]
    method: str
    combine: Combine
    options: Mapping[str, OptionValue]
    seed: int
    output: Output

    @property
    def active(self) -> list[Term]:
        """The terms that act, in an order that does not depend on how they were given."""
        acting = [term for term in self.terms if term.alpha != 0.0]
        return sorted(acting, key=lambda term: (term.delta.identity, term.alpha))

    @property
    def inputs(self) -> list[Path]:
        """Every directory that is read."""
        return [self.base.path, *(path for term in self.terms for path in term.delta.source.inputs)]

    @property
    def tensors(self) -> list[TensorPlan]:
        """What will be written, in the order of the base's files."""
        entries = sorted(self.base.entries.values(), key=lambda entry: (entry.file, entry.start))
        return [TensorPlan(e.name, self._dtype(e.dtype), e.shape) for e in entries]

    def _dtype(self, stored: torch.dtype) -> torch.dtype:
        fixed = self.output.dtype == "same" or not stored.is_floating_point
        return stored if fixed else DTYPES[self.output.dtype]

    def describe(self) -> dict[str, Any]:
        """Return the plan as JSON-like data: every option with its value, every term."""
        return {
            "base": {
                "path": str(self.base.path),
                "reference": self.base.reference,
                "fingerprint": self.base.fingerprint.digest,
            },
            "method": self.method,
            "source": METHODS[self.method].source,
            "options": dict(self.options),
            "seed": self.seed,
            "terms": [
                {
                    "label": term.delta.label,
                    "alpha": term.alpha,
                    "identity": term.delta.identity,
                    "pole": str(term.delta.pole) if term.delta.pole else None,
                    "tensors": len(term.delta.names),
                }
                for term in self.terms
            ],
            "output": {
                "dtype": self.output.dtype,
                "rounding": self.output.rounding,
                "shard_size": self.output.shard_size,
            },
            "bytes": sum(plan.size for plan in self.tensors),
        }


def plan_merge(
    base: str | Path | Checkpoint,
    terms: Sequence[tuple[Delta | str | Path, float]],
    method: str,
    options: Mapping[str, OptionValue],
    seed: int,
    output: Output,
) -> MergePlan:
    """Check everything that can be checked without reading weights; return what would be done."""
    combine, values = find_method(method).bind(options)
    if not terms:
        raise RecipeError("a merge needs at least one term")
    for where, alpha in terms:
        if not math.isfinite(alpha):
            raise NonFiniteError(f"{where}: alpha must be a finite number, got {alpha}")
    start = Checkpoint.open(base)
    opened = tuple(Term(open_delta(where, start), float(alpha)) for where, alpha in terms)
    return MergePlan(start, opened, method, combine, values, seed, output)


def plan_recipe(recipe: MergeRecipe) -> MergePlan:
    """Return the checked plan of a recipe."""
    base = Checkpoint.open(recipe.base)
    terms = [(open_delta(term.source, base, label=term.label), term.alpha) for term in recipe.terms]
    output = Output(recipe.output.dtype, recipe.output.rounding, recipe.output.shard_size)
    return plan_merge(base, terms, recipe.method, recipe.options, recipe.seed, output)
