"""Sums of deltas, as lazy as what they are made of."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float64
from torch import Tensor

from personality_vector.delta.sources import TensorSource

Summand = tuple[float, TensorSource]


@dataclass(frozen=True)
class Combination:
    """``sum of coefficient * source``, in float64, summed in the order given."""

    terms: tuple[Summand, ...]

    @classmethod
    def of(cls, *terms: Summand) -> "Combination":
        """Return the sum, with the terms of the sums in it in place of those sums."""
        flat: list[Summand] = []
        for factor, source in terms:
            inner = source.terms if isinstance(source, Combination) else ((1.0, source),)
            flat += [(factor * coefficient, part) for coefficient, part in inner]
        return cls(tuple(flat))

    @cached_property
    def _holders(self) -> dict[str, tuple[Summand, ...]]:
        """The terms that name each tensor."""
        holders: dict[str, tuple[Summand, ...]] = {}
        for term in self.terms:
            for name in term[1].names:
                holders[name] = (*holders.get(name, ()), term)
        return holders

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Every tensor that a term names."""
        return tuple(sorted(self._holders))

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Those of every term."""
        return tuple(dict.fromkeys(path for _, source in self.terms for path in source.inputs))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self._holders[name][0][1].shape(name)

    def part(self, name: str, part: slice) -> Float64[Tensor, " entries"]:
        """Return the weighted sum of the terms that name this tensor."""
        total = torch.zeros(part.stop - part.start, dtype=torch.float64)
        for coefficient, source in self._holders[name]:
            total += coefficient * source.part(name, part)
        return total

    def tuned_part(self, name: str, part: slice, base: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return ``None``: a sum has no fine-tuned model."""
        return None

    def require_unchanged(self) -> None:
        """Check every term."""
        for _, source in self.terms:
            source.require_unchanged()
