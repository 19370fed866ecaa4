"""A steering vector added to the output of decoder blocks."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from personality_vector.errors import ModelError, blame
from personality_vector.interventions.spec import InterventionSpec, Usual, require_step
from personality_vector.recipes.schema import Layers, LocalPath, Real, Recipe, Whole, Words

if TYPE_CHECKING:
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.steering import Gate, Positions, SteeringVector, Strength
    from personality_vector.subject.subject import Subject

How = Literal["add", "add_keeping_norm", "ablate"]


@dataclass(frozen=True, slots=True)
class ActivationSteering(Usual):
    """``coefficient * direction`` added to the output of some decoder blocks.

    Attributes:
        vector: In the unit of the activation, not normalised, so coefficients of different
            vectors or models do not compare.
        layers: Decoder blocks, ``-1`` the last; each must have a direction in ``vector``.
        label: Defaults to that of the vector.
        positions: Which tokens are steered, as a clause such as ``last 1 + response``.
        how: ``add``, ``add_keeping_norm``, or ``ablate``, where 1 removes the direction.
        gate: Steers only chats whose prompt opens it.
        files: Folders that the vector and the gate were read from; their content is part of the
            identity.
    """

    vector: "SteeringVector"
    layers: Sequence[int]
    label: str = ""
    positions: "str | Positions" = "all"
    how: How = "add"
    gate: "Gate | None" = None
    files: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.vector.label)
        object.__setattr__(self, "layers", tuple(self.layers))
        object.__setattr__(self, "positions", str(self.positions))

    def check(self, base: "Checkpoint") -> None:
        """Refuse a base that cannot be steered so.

        Raises:
            BaseMismatchError: The vector is of another model, or it or the gate of another width.
            ModelError: The base has no such layer, or the gate lies behind a steered one.
            DataError: A layer is named twice, or none is.
            TensorMismatchError: The vector has no direction for a layer.
            RecipeError: The positions cannot be read.
        """
        from personality_vector.steering.belonging import (
            block_numbers,
            require_made_from,
            require_width,
        )
        from personality_vector.steering.positions import positions_of
        from personality_vector.subject.models import load_tokenizer

        require_made_from(self.label, self.vector.model, base)
        require_width(self.label, self.vector.hidden, base)
        positions_of(self.positions, lambda: load_tokenizer(base.path))
        with blame(intervention=self.label):
            layers = block_numbers(self.layers, base)
            for layer in layers:
                _ = self.vector[layer]
            if self.gate is not None:
                require_width("the gate", self.gate.direction.numel(), base)
                block_numbers([self.gate.layer], base)
                first = min(layers, default=self.gate.layer)
                if self.gate.layer > first:
                    raise ModelError(
                        f"the gate at layer {self.gate.layer} lies behind the first steered layer, "
                        f"{first}; move it to {first} or before"
                    )

    @contextmanager
    def applied(self, subject: "Subject", strength: "Strength") -> Generator["Subject"]:
        """Steer by forward hooks; coefficient 0 registers none. See :func:`steered`.

        ``strength`` is the coefficient: a number, or one for each row of every batch.

        Raises:
            ModelError: The model has no such layer.
            DataError: A layer is named twice, or none is.
            TensorMismatchError: The vector has no direction for a layer.
            BaseMismatchError: The vector has another width than the model.
            NonFiniteError: The coefficient is not finite, or the addition would not be.
        """
        from personality_vector.steering import resolve_layers, steered
        from personality_vector.steering.positions import positions_of

        if isinstance(strength, int | float):
            require_step(self, strength)
        model = subject.model
        directions = {layer: self.vector[layer] for layer in resolve_layers(model, self.layers)}
        positions = positions_of(self.positions, lambda: subject.tokenizer)
        with steered(
            model, directions, strength, positions=positions, how=self.how, gate=self.gate
        ):
            yield subject


class GateSpec(Recipe):
    """Steer only chats whose prompt is similar to a direction; see ``steering.Gate``.

    The direction is that of a saved steering vector at ``layer``, a 0-based decoder block.
    """

    vector: LocalPath
    layer: Whole = Field(ge=0)
    threshold: Real = Field(ge=-1, le=1)
    side: Literal["above", "below"] = "above"

    def read(self, base: "Checkpoint") -> "Gate":
        """Return the gate.

        Raises:
            BaseMismatchError: Its direction is of another model.
            CheckpointError: The vector is missing or damaged.
        """
        from personality_vector.steering import Gate, SteeringVector
        from personality_vector.steering.belonging import require_made_from

        vector = SteeringVector.load(self.vector)
        require_made_from(self.vector, vector.model, base)
        return Gate(self.layer, vector[self.layer], self.threshold, self.side)


class VectorSpec(InterventionSpec):
    """``vector`` is a saved one, which steers the output of ``layers``, by default at all tokens.

    ``positions`` are a clause such as ``last 1 + response``. ``incremental`` adds at each layer
    only what the vector gains since the layer before.
    """

    vector: LocalPath
    layers: Layers
    positions: Words = "all"
    how: How = "add"
    gate: GateSpec | None = None
    incremental: bool = False

    @model_validator(mode="after")
    def _go_together(self) -> "VectorSpec":
        if self.gate is not None and self.positions != "response":
            raise ValueError("a gate is decided by the whole prompt; add positions: response")
        if self.incremental and min(self.layers) < 0:
            raise ValueError("with incremental, layers are counted from 0")
        return self

    def read(self, base: "Checkpoint") -> ActivationSteering:
        """Return the steering."""
        from personality_vector.steering import SteeringVector

        vector = SteeringVector.load(self.vector)
        if self.incremental:
            vector = vector.at(*self.layers).incremental()
        return ActivationSteering(
            vector,
            self.layers,
            label=self.label,
            positions=self.positions,
            how=self.how,
            gate=self.gate.read(base) if self.gate else None,
            files=(self.vector, *([self.gate.vector] if self.gate else [])),
        )
