"""The model that is baked into: its configuration, its names on disk, and what is asked of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from personality_vector.checkpoint import Checkpoint
from personality_vector.errors import CheckpointError, DataError, ModelError, NonFiniteError
from personality_vector.steering.bake.routes import Family
from personality_vector.steering.fit import resolved
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
    """

    checkpoint: Checkpoint
    config: Any
    family: Family

    @property
    def prefix(self) -> str:
        """Of the names on disk: the family's root and a dot, or "" where that is left out."""
        root = f"{self.family.root}."
        return root if any(name.startswith(root) for name in self.checkpoint.names) else ""

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
        """Return the name on disk of a block's weight; see :meth:`stored`."""
        return self.stored(f"{self.family.blocks}.{layer}.{module}")

    def stored(self, module: str) -> str:
        """Return the name on disk of the weight of a module below the root.

        Raises:
            CheckpointError: The checkpoint has no such tensor.
        """
        name = f"{self.prefix}{module}.weight"
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


def asked_shifts(
    base: Base, vector: SteeringVector, layers: Sequence[int], coefficient: float
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
    shifts = {layer: coefficient * vector[layer] for layer in resolved(layers, base.layers)}
    for layer, shift in shifts.items():
        if not torch.isfinite(shift).all():
            raise NonFiniteError(f"layer {layer}: {coefficient:g} times the vector overflows")
    return shifts
