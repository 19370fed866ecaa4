"""Where the tensors of a delta come from. Each source is lazy: one tensor in memory at a time.

A source holds the tensors that it changes; a base tensor that it does not name has a delta of
zero. Arithmetic is float32.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from personality_vector.checkpoint import Checkpoint
from personality_vector.errors import NonFiniteError, TensorMismatchError, some


@runtime_checkable
class TensorSource(Protocol):
    """Anything that yields float32 delta tensors by name."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors that may be non-zero, sorted."""

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Directories that are read."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""

    def read(self, name: str) -> Float[Tensor, "*shape"]:
        """Return one delta tensor, float32, on the CPU."""

    def tuned(self, name: str, base: Tensor) -> Tensor | None:
        """Return the fine-tuned tensor itself, bit for bit, if this source can; else ``None``."""


@dataclass(frozen=True, slots=True)
class Difference:
    """``tuned - base``, by reference to two checkpoints."""

    base: Checkpoint
    tuned_checkpoint: Checkpoint

    @property
    def names(self) -> tuple[str, ...]:
        """Floating-point tensors of the base."""
        return tuple(name for name in self.base.names if _is_float(self.base, name))

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Both checkpoints."""
        return (self.base.path, self.tuned_checkpoint.path)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return self.base.entries[name].shape

    def read(self, name: str) -> Float[Tensor, "*shape"]:
        """Return ``float32(tuned) - float32(base)``.

        Raises:
            NonFiniteError: Either tensor holds NaN or infinity.
        """
        ends = [require_finite(end, name) for end in (self.tuned_checkpoint, self.base)]
        return ends[0].float() - ends[1].float()

    def tuned(self, name: str, base: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return the tensor of the fine-tuned checkpoint."""
        return self.tuned_checkpoint[name]


@dataclass(frozen=True, slots=True)
class Stored:
    """A delta that was saved: float32 or bfloat16 tensors.

    ``exact`` holds, per tensor, the places where ``base + delta`` in float32 would not round back
    to the fine-tuned value, and that value: with it a float32 delta restores the fine-tuned model
    bit for bit.
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

    def read(self, name: str) -> Float[Tensor, "*shape"]:
        """Return the stored tensor as float32."""
        return require_finite(self.tensors, name).float()

    def tuned(self, name: str, base: Tensor) -> Tensor | None:
        """Return ``base + delta`` with the recorded exact values put in."""
        if name not in self.tuned_dtypes:
            return None
        tuned = (base.float() + self.read(name)).to(self.tuned_dtypes[name])
        if self.exact is not None and f"{name}.index" in self.exact.entries:
            tuned.view(-1)[self.exact[f"{name}.index"]] = self.exact[f"{name}.value"]
        return tuned


@dataclass(frozen=True, slots=True)
class Combination:
    """``sum of coefficient * source``, summed in the order given, in float32."""

    terms: tuple[tuple[float, TensorSource], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Every tensor that a term names."""
        return tuple(sorted({name for _, source in self.terms for name in source.names}))

    @property
    def inputs(self) -> tuple[Path, ...]:
        """Those of every term."""
        return tuple(dict.fromkeys(path for _, source in self.terms for path in source.inputs))

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor."""
        return next(source.shape(name) for _, source in self.terms if name in source.names)

    def read(self, name: str) -> Float[Tensor, "*shape"]:
        """Return the weighted sum of the terms that name this tensor."""
        total = torch.zeros(self.shape(name))
        for coefficient, source in self.terms:
            if name in source.names:
                total += coefficient * source.read(name)
        return total

    def tuned(self, name: str, base: Tensor) -> Tensor | None:  # noqa: ARG002
        """Return ``None``: a combination has no fine-tuned model."""
        return None


def require_finite(checkpoint: Checkpoint, name: str) -> Tensor:
    """Return a tensor after checking it.

    Raises:
        NonFiniteError: It holds NaN or infinity; names file, tensor and how many.
    """
    tensor = checkpoint[name]
    if tensor.numel() and tensor.is_floating_point():
        low, high = torch.aminmax(tensor)
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            count = int((~torch.isfinite(tensor)).sum())
            raise NonFiniteError(
                f"{checkpoint.entries[name].file}: {name}: {count} of {tensor.numel()} values "
                "are NaN or infinite"
            )
    return tensor


def require_same_tensors(base: Checkpoint, tuned: Checkpoint) -> None:
    """Check that two checkpoints have the same names and shapes, and equal integer tensors.

    Raises:
        TensorMismatchError: They do not; names what and which model is odd.
    """
    missing = set(base.entries) - set(tuned.entries)
    extra = set(tuned.entries) - set(base.entries)
    if missing or extra:
        parts = [f"lacks {some(missing)}"] if missing else []
        parts += [f"adds {some(extra)}"] if extra else []
        raise TensorMismatchError(
            f"{tuned.path}: {' and '.join(parts)}; a fine-tune of {base.path} has the same tensors"
        )
    for name in base.names:
        _require_same_tensor(base, tuned, name)


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
