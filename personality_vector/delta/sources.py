"""The sources of the tensors of a delta. Each source is lazy and is read in parts.

A source holds the tensors that it changes; a base tensor that it does not name has a delta of
zero. A part is a run of entries of one tensor, row-major; arithmetic is float64, in which the
difference of two weights is exact.
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from personality_vector.checkpoint import DTYPES, Checkpoint
from personality_vector.errors import NonFiniteError
from personality_vector.numeric.kernels import difference, is_finite

Factored = tuple[Float64[Tensor, "out rank"], Float64[Tensor, "rank in"]]
"""Two matrices whose product is a tensor."""


class TensorSource(ABC):
    """The base of whatever yields delta tensors by name, one part at a time.

    A subclass knows the shapes of its tensors, and the checkpoints or other sources that it reads.
    """

    @property
    @abstractmethod
    def _shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    @property
    @abstractmethod
    def _origins(self) -> "Sequence[Checkpoint | TensorSource]": ...

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors that may be non-zero, sorted."""
        return tuple(sorted(self._shapes))

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Directories that are read."""
        return tuple(
            path
            for one in self._origins
            for path in ([one.path] if isinstance(one, Checkpoint) else one.inputs)
        )

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self._shapes[name]

    @abstractmethod
    def part(self, name: str, part: slice) -> Float64[Tensor, " entries"]:
        """Return the entries ``part.start .. part.stop`` of one delta tensor, on the CPU."""

    def product(self, name: str) -> Factored | None:  # noqa: ARG002
        """Return two matrices whose product one delta tensor is, if it is kept as such."""
        return None

    def tuned_part(self, name: str, part: slice, base: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return these entries of the fine-tuned tensor itself, bit for bit, if it is known.

        ``base`` holds the same entries of the base, in its stored dtype.
        """
        return None

    def require_unchanged(self) -> None:
        """Raise :class:`CheckpointError` if a file changed since it was opened."""
        for one in self._origins:
            one.require_unchanged()


@dataclass(frozen=True)
class Difference(TensorSource):
    """``tuned - base``, by reference to two checkpoints."""

    base: Checkpoint
    tuned: Checkpoint
    """It has the names of the base: see :func:`personality_vector.delta.matched`."""

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        # Integer tensors are the same in both, so they have no delta.
        return {
            entry.name: entry.shape
            for entry in self.base.entries.values()
            if entry.dtype.is_floating_point and entry.name in self.tuned.entries
        }

    @property
    def _origins(self) -> tuple[Checkpoint, Checkpoint]:
        return self.base, self.tuned

    def part(self, name: str, part: slice) -> Float64[Tensor, " entries"]:
        """Return ``tuned - base``.

        Raises:
            NonFiniteError: Either holds NaN or infinity there.
        """
        return difference(
            require_finite(self.tuned, name, part), require_finite(self.base, name, part)
        )

    def tuned_part(self, name: str, part: slice, base: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return the entries of the fine-tuned checkpoint."""
        return self.tuned.part(name, part)


@dataclass(frozen=True)
class Stored(TensorSource):
    """A delta that was saved: float32 or bfloat16 tensors.

    ``exact`` holds, per tensor, the places where ``base + delta`` would not round back to the
    fine-tuned value, and that value: with it a float32 delta restores the fine-tuned model bit for
    bit.
    """

    tensors: Checkpoint
    exact: Checkpoint | None
    tuned_dtypes: Mapping[str, str]

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: entry.shape for name, entry in self.tensors.entries.items()}

    @property
    def _origins(self) -> tuple[Checkpoint]:
        return (self.tensors,)

    def part(self, name: str, part: slice) -> Float64[Tensor, " entries"]:
        """Return the stored entries."""
        return require_finite(self.tensors, name, part).double()

    def tuned_part(self, name: str, part: slice, base: Tensor) -> Tensor | None:
        """Return ``base + delta`` with the recorded exact values put in."""
        if name not in self.tuned_dtypes:
            return None
        delta = self.tensors.part(name, part)
        restored = self.sum_of(base, delta, DTYPES[self.tuned_dtypes[name]])
        exact, index = self.exact, f"{name}.index"
        if exact is not None and index in exact.entries:
            # The list ascends: bisection finds what of it lies in this part.
            places = range(math.prod(exact.entries[index].shape))
            first, last = (
                bisect_left(places, end, key=lambda at: int(exact.part(index, slice(at, at + 1))))
                for end in (part.start, part.stop)
            )
            found = exact.part(index, slice(first, last))
            restored[found - part.start] = exact.part(f"{name}.value", slice(first, last))
        return restored

    @staticmethod
    def sum_of(base: Tensor, delta: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``base + delta``, added in float32: the tuned tensor but for a few entries."""
        return (base.float() + delta).to(dtype)


Scaled = tuple[float, TensorSource]


@dataclass(frozen=True)
class Combination(TensorSource):
    """``sum of coefficient * source``, in float64, summed in the order given."""

    terms: tuple[Scaled, ...]

    @classmethod
    def of(cls, *terms: Scaled) -> "Combination":
        """Return the sum, with the terms of the sums in it in place of those sums."""
        flat: list[Scaled] = []
        for factor, source in terms:
            inner = source.terms if isinstance(source, Combination) else ((1.0, source),)
            flat += [(factor * coefficient, part) for coefficient, part in inner]
        return cls(tuple(flat))

    @cached_property
    def _holders(self) -> dict[str, tuple[Scaled, ...]]:
        """The terms that name each tensor."""
        holders: dict[str, tuple[Scaled, ...]] = {}
        for term in self.terms:
            for name in term[1].names:
                holders[name] = (*holders.get(name, ()), term)
        return holders

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: terms[0][1].shape(name) for name, terms in self._holders.items()}

    @property
    def _origins(self) -> list[TensorSource]:
        return [source for _, source in self.terms]

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The directories of every term, each once."""
        return tuple(dict.fromkeys(super().inputs))

    def part(self, name: str, part: slice) -> Float64[Tensor, " entries"]:
        """Return the weighted sum of the terms that name this tensor."""
        total = torch.zeros(part.stop - part.start, dtype=torch.float64)
        for coefficient, source in self._holders[name]:
            total += coefficient * source.part(name, part)
        return total

    def product(self, name: str) -> Factored | None:
        """Return the factors of all terms side by side: ``[c1 B1, c2 B2, ...] @ [A1; A2; ...]``."""
        lefts, rights = [], []
        for coefficient, source in self._holders[name]:
            found = source.product(name)
            if found is None:
                return None
            lefts.append(coefficient * found[0])
            rights.append(found[1])
        return torch.cat(lefts, dim=1), torch.cat(rights, dim=0)


@dataclass(frozen=True)
class Renamed(TensorSource):
    """Some tensors of another source under other names; all other tensors have a delta of zero."""

    source: TensorSource
    own: Mapping[str, str]
    """From a name here to the name of the same tensor in the source."""

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        return {name: self.source.shape(own) for name, own in self.own.items()}

    @property
    def _origins(self) -> tuple[TensorSource]:
        return (self.source,)

    def part(self, name: str, part: slice) -> Float64[Tensor, " entries"]:
        """Return the same entries of the tensor, as the source has them."""
        return self.source.part(self.own[name], part)

    def product(self, name: str) -> Factored | None:
        """Return the factors that the source has."""
        return self.source.product(self.own[name])


class Restricted(Renamed):
    """Some tensors of another source under their own names, and so of the same base."""

    def tuned_part(self, name: str, part: slice, base: Tensor) -> Tensor | None:
        """Return the entries that the source returns."""
        return self.source.tuned_part(self.own[name], part, base)


def whole(source: TensorSource, name: str) -> slice:
    """Return the part that is all of a tensor."""
    return slice(0, math.prod(source.shape(name)))


def require_finite(
    checkpoint: Checkpoint, name: str, part: slice = slice(None), *, keep: bool = True
) -> Shaped[Tensor, " entries"]:
    """Return entries of a tensor, flat and in their stored dtype, after checking them.

    They are not to be modified: unless ``keep`` is off, the part that a thread read last is kept
    and given again, since all terms of a merge ask for the same part of the base.

    Raises:
        NonFiniteError: They hold NaN or infinity; names file, tensor and how many of the tensor.
    """
    asked = (name, part.start, part.stop)
    last = getattr(checkpoint.last_read, "part", None)
    if last is not None and last[0] == asked:
        return cast("Tensor", last[1])
    entries = checkpoint.part(name, part)
    if entries.is_floating_point() and not is_finite(entries):
        tensor = checkpoint[name]
        count = int((~torch.isfinite(tensor)).sum())
        raise NonFiniteError(
            f"{checkpoint.entries[name].file}: {name}: {count} of {tensor.numel()} values "
            "are NaN or infinite"
        )
    if keep:
        checkpoint.last_read.part = (asked, entries)
    return entries
