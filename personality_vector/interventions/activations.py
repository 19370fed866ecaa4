"""A steering vector added to the output of decoder blocks."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from personality_vector.steering import (
    ALL,
    Gate,
    How,
    Positions,
    SteeringVector,
    Strength,
    resolve_layers,
    steered,
)
from personality_vector.subject.chat import ChatEdit
from personality_vector.subject.protocols import require_finite


@dataclass(frozen=True, slots=True)
class ActivationSteering:
    """``coefficient * direction`` added to the output of some decoder blocks.

    Attributes:
        vector: In the unit of the activation, not normalised, so coefficients of different
            vectors or models do not compare.
        layers: Decoder blocks, ``-1`` the last; each must have a direction in ``vector``.
        label: Defaults to that of the vector.
        positions: Which tokens are steered.
        how: ``add``, ``add_keeping_norm``, or ``ablate``, where 1 removes the direction.
        gate: Steers only chats whose prompt opens it.
    """

    vector: SteeringVector
    layers: Sequence[int]
    label: str = ""
    positions: Positions = ALL
    how: How = "add"
    gate: Gate | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.vector.label)
        object.__setattr__(self, "layers", tuple(self.layers))

    @contextmanager
    def applied(self, model: nn.Module, coefficient: Strength) -> Generator[ChatEdit]:
        """Steer by forward hooks; coefficient 0 registers none. See :func:`steered`.

        ``coefficient`` is a number, or one for each row of every batch.

        Raises:
            ModelError: The model has no such layer.
            DataError: A layer is named twice, or none is.
            TensorMismatchError: The vector has no direction for a layer.
            BaseMismatchError: The vector has another width than the model.
            NonFiniteError: The coefficient is not finite, or the addition would not be.
        """
        if isinstance(coefficient, float):
            require_finite(self.label, coefficient)
        directions = {layer: self.vector[layer] for layer in resolve_layers(model, self.layers)}
        with steered(
            model, directions, coefficient, positions=self.positions, how=self.how, gate=self.gate
        ):
            yield identity
