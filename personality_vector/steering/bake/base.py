"""The model that is baked into: its configuration, its names on disk, and what is asked of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from personality_vector.checkpoint import Checkpoint
from personality_vector.errors import (
    BaseMismatchError,
    CheckpointError,
    DataError,
    ModelError,
    NonFiniteError,
)
from personality_vector.steering.bake.families import Family
from personality_vector.steering.belonging import require_made_from
from personality_vector.steering.layers import resolved
from personality_vector.steering.vector import SteeringVector

Shifts = Mapping[int, Float[Tensor, " hidden"]]
"""0-based decoder block to what is added to its output; float32."""


@dataclass(frozen=True, slots=True)
class Base:
    """A checkpoint, and where its family writes to the residual stream.

    Attributes:
        checkpoint: On disk.
        config: As transformers reads it, with every default filled in.
        family: Of the architecture.
        prefix: Of the names on disk: the family's root and a dot, or "" where that is left out.
    """

    checkpoint: Checkpoint
    config: Any
    family: Family
    prefix: str

    @classmethod
    def of(cls, checkpoint: Checkpoint, config: Any, family: Family) -> "Base":
        """Return the base; its names on disk may lack the family's root."""
        root = f"{family.root}."
        has_root = any(name.startswith(root) for name in checkpoint.names)
        return cls(checkpoint, config, family, root if has_root else "")

    @property
    def layers(self) -> int:
        """Number of decoder blocks."""
        return int(self.config.num_hidden_layers)

    @property
    def multiplier(self) -> float:
        """The factor on whatever a block adds to the stream."""
        return float(getattr(self.config, self.family.multiplier, 1.0))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights that write to the stream."""
        return self.checkpoint.entries[self.weight(0, self.family.mlp)].dtype

    def weight(self, layer: int, module: str) -> str:
        """Return the name on disk of a block's weight.

        Raises:
            CheckpointError: The checkpoint has no such tensor.
        """
        return self._stored(f"{self.prefix}{self.family.blocks}.{layer}.{module}.weight")

    def embedding(self, module: str) -> str:
        """Return the name on disk of an embedding; see :meth:`weight`."""
        return self._stored(f"{self.prefix}{module}.weight")

    def width_out(self, weight: str) -> int:
        """Return how many numbers the linear map of this weight puts out."""
        return self.checkpoint.entries[weight].shape[1 if self.family.transposed else 0]

    def _stored(self, name: str) -> str:
        if name not in self.checkpoint.entries:
            raise CheckpointError(
                f"{self.checkpoint.path}: has no tensor {name}, which every "
                f"{self.config.model_type} has; config.json and weights do not belong together"
            )
        return name


def read_config(checkpoint: Checkpoint) -> Any:
    """Return the configuration of a checkpoint as transformers reads it, defaults filled in.

    Raises:
        ModelError: transformers does not know the architecture.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(checkpoint.path)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"{checkpoint.path}: transformers cannot read config.json: {error}") from (
            error
        )


def require_vector_of(vector: SteeringVector, checkpoint: Checkpoint, config: Any) -> None:
    """Check that a vector is of this model.

    Raises:
        BaseMismatchError: It was extracted from another model, or has another width.
    """
    label = vector.label or "the vector"
    require_made_from(label, vector.model, checkpoint)
    if vector.hidden != config.hidden_size:
        raise BaseMismatchError(
            f"{label} is {vector.hidden} wide, the residual stream of "
            f"{checkpoint.path} {config.hidden_size}"
        )


def asked_shifts(
    vector: SteeringVector, config: Any, layers: Sequence[int], coefficient: float
) -> dict[int, Float[Tensor, " hidden"]]:
    """Return ``coefficient * v_l`` for each layer ``l``, ``-1`` being the last block.

    Raises:
        ModelError: The model has no such block.
        TensorMismatchError: The vector has no direction for it.
        DataError: No layer is given, or one twice; or the coefficient is 0.
        NonFiniteError: The coefficient is NaN or infinite, or the product is.
    """
    if not math.isfinite(coefficient):
        raise NonFiniteError(f"the coefficient must be a finite number, got {coefficient}")
    if coefficient == 0:
        raise DataError("coefficient 0 is the model itself: there is nothing to bake")
    shifts = {
        layer: coefficient * vector[layer]
        for layer in resolved(layers, int(config.num_hidden_layers))
    }
    for layer, shift in shifts.items():
        if not torch.isfinite(shift).all():
            raise NonFiniteError(f"layer {layer}: {coefficient:g} times the vector overflows")
    return shifts
