"""Where the tensors of a delta come from. Each source is lazy and read in parts.

A source holds the tensors that it changes; a base tensor that it does not name has a delta of
zero. A part is a run of entries of one tensor, row-major; arithmetic is float64, in which the
difference of two weights is exact.
"""

import math
from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float64, Shaped
from torch import Tensor

from personality_vector.checkpoint import Checkpoint
from personality_vector.checkpoint.names import kind
from personality_vector.errors import NonFiniteError, TensorMismatchError, some
from personality_vector.numeric.kernels import difference, is_finite
from personality_vector.numeric.parallel import pieces


@runtime_checkable
class TensorSource(Protocol):
    """Anything that yields delta tensors by name, a part at a time."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors that may be non-zero, sorted."""

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Directories that are read."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""

    def part(self, name: str, part: slice) -> Float64[Tensor, " entries"]:
        """Return the entries ``part.start .. part.stop`` of one delta tensor, on the CPU."""

    def tuned_part(self, name: str, part: slice, base: Tensor) -> Tensor | None:
        """Return these entries of the fine-tuned tensor itself, bit for bit, if it is known.

        ``base`` holds the same entries of the base, in its stored dtype.
        """

    def require_unchanged(self) -> None:
        """Raise :class:`CheckpointError` if a file changed since it was opened."""


@dataclass(frozen=True)
class Difference:
    """``tuned - base``, by reference to two checkpoints."""

    base: Checkpoint
    tuned: Checkpoint

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Floating-point tensors of the base."""
        return tuple(name for name in self.base.names if _is_float(self.base, name))

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Both checkpoints."""
        return (self.base.path, self.tuned.path)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self.base.entries[name].shape

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

    def require_unchanged(self) -> None:
        """Check both checkpoints."""
        self.base.require_unchanged()
        self.tuned.require_unchanged()


@dataclass(frozen=True)
class Stored:
    """A delta that was saved: float32 or bfloat16 tensors.

    ``exact`` holds, per tensor, the places where ``base + delta`` would not round back to the
    fine-tuned value, and that value: with it a float32 delta restores the fine-tuned model bit for
    bit.
    """

    tensors: Checkpoint
    exact: Checkpoint | None
    tuned_dtypes: dict[str, torch.dtype]

    @property
    def names(self) -> tuple[str, ...]:
        """The stored tensors."""
        return self.tensors.names

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The directory of the saved delta."""
        return (self.tensors.path,)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self.tensors.entries[name].shape

    def part(self, name: str, part: slice) -> Float64[Tensor, " entries"]:
        """Return the stored entries."""
        return require_finite(self.tensors, name, part).double()

    def tuned_part(self, name: str, part: slice, base: Tensor) -> Tensor | None:
        """Return ``base + delta`` with the recorded exact values put in."""
        if name not in self.tuned_dtypes:
            return None
        delta = self.tensors.part(name, part)
        restored = self.sum_of(base, delta, self.tuned_dtypes[name])
        if self.exact is not None and f"{name}.index" in self.exact.entries:
            listed = self._listed(self.exact, name, part)
            index = self.exact.part(f"{name}.index", listed)
            restored[index - part.start] = self.exact.part(f"{name}.value", listed)
        return restored

    @staticmethod
    def sum_of(base: Tensor, delta: Tensor, dtype: torch.dtype) -> Tensor:
        """Return ``base + delta``, added in float32: the tuned tensor but for a few entries."""
        return (base.float() + delta).to(dtype)

    @staticmethod
    def _listed(exact: Checkpoint, name: str, part: slice) -> slice:
        """Return where the ascending list of exact values speaks of ``part``, by bisection."""

        def index_at(place: int) -> int:
            return int(exact.part(f"{name}.index", slice(place, place + 1)))

        places = range(math.prod(exact.entries[f"{name}.index"].shape))
        first, last = (bisect_left(places, end, key=index_at) for end in (part.start, part.stop))
        return slice(first, last)

    def require_unchanged(self) -> None:
        """Check the files of the saved delta."""
        self.tensors.require_unchanged()


@dataclass(frozen=True)
class Restricted:
    """Some of the tensors of another source; the others have a delta of zero."""

    source: TensorSource
    names: tuple[str, ...]

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Those of the source."""
        return self.source.inputs

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self.source.shape(name)

    def part(self, name: str, part: slice) -> Float64[Tensor, " entries"]:
        """Return what the source has there."""
        return self.source.part(name, part)

    def tuned_part(self, name: str, part: slice, base: Tensor) -> Tensor | None:
        """Return what the source has there."""
        return self.source.tuned_part(name, part, base)

    def require_unchanged(self) -> None:
        """Check the source."""
        self.source.require_unchanged()


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


def require_same_tensors(base: Checkpoint, tuned: Checkpoint) -> None:
    """Check that two checkpoints have the same names and shapes, and equal integer tensors.

    A head that only the fine-tuned model has, and that is nothing but a copy of its embeddings, as
    some trainers store it, is passed over.

    Raises:
        TensorMismatchError: They do not; names what and which model is odd.
    """
    missing = set(base.entries) - set(tuned.entries)
    extra = {name for name in set(tuned.entries) - set(base.entries) if not _is_copy(tuned, name)}
    if missing or extra:
        parts = [f"lacks {some(missing)}"] if missing else []
        parts += [f"adds {some(extra)}"] if extra else []
        heads = [name for name in missing | extra if kind(name) == "head"]
        tied = " (one of the two ties its head to its embeddings)" if heads else ""
        raise TensorMismatchError(
            f"{tuned.path}: {' and '.join(parts)}{tied}; a fine-tune of {base.path} has the same "
            "tensors, and a delta of another base has to name that one with of"
        )
    for name in base.names:
        _require_same_tensor(base, tuned, name)


def _is_copy(model: Checkpoint, name: str) -> bool:
    """Return whether a tensor is a head that equals the embeddings, entry by entry."""
    head = model.entries[name]
    if kind(name) != "head":
        return False
    alike = [
        entry.name
        for entry in model.entries.values()
        if kind(entry.name) == "embeddings"
        and (entry.dtype, entry.shape) == (head.dtype, head.shape)
    ]
    parts = list(pieces(math.prod(head.shape)))
    return any(
        all(torch.equal(model.part(name, part), model.part(other, part)) for part in parts)
        for other in alike
    )


def _require_same_tensor(base: Checkpoint, tuned: Checkpoint, name: str) -> None:
    ours, theirs = base.entries[name], tuned.entries[name]
    if ours.shape != theirs.shape:
        raise TensorMismatchError(
            f"{tuned.path}: {name} has shape {list(theirs.shape)}, "
            f"in the base {base.path} it is {list(ours.shape)}"
        )
    if _is_float(base, name) != _is_float(tuned, name):
        raise TensorMismatchError(f"{tuned.path}: {name} is {theirs.dtype}, not {ours.dtype}")
    if not _is_float(base, name) and not torch.equal(base[name], tuned[name]):
        raise TensorMismatchError(f"{tuned.path}: the integer tensor {name} differs from the base")


def _is_float(checkpoint: Checkpoint, name: str) -> bool:
    return checkpoint.entries[name].dtype.is_floating_point
