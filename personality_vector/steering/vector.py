"""Steering vectors: directions in activation space, their algebra and their storage."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from personality_vector.chat import Chat
from personality_vector.errors import (
    BaseMismatchError,
    DataError,
    NonFiniteError,
    TensorMismatchError,
)
from personality_vector.models import decoder_blocks
from personality_vector.steering import storage
from personality_vector.steering.apply import resolve_layers
from personality_vector.steering.extract import mean_response_activations
from personality_vector.traits import Pole


@dataclass(frozen=True, slots=True, eq=False)
class SteeringVector:
    """A direction in the residual stream for each of some layers; not normalised.

    Attributes:
        directions: 0-based decoder block to a float32 direction ``(hidden,)`` on the CPU, in the
            unit of that block's output.
        model: Hex digest of the fingerprint of the model it came from; "" where that is unknown.
            Only vectors of the same model can be combined.
        pole: What it points to, if anything.
        label: For messages and reports.
        pooling: How activations were averaged: ``response_mean``, or what a sum was made of.
        counts: Number of positive and of negative chats behind it.

    Raises:
        DataError: No layer, or a direction of zero, which points nowhere.
        NonFiniteError: A direction holds NaN or infinity.
        TensorMismatchError: A direction is not one float32 vector, or widths differ.

    Source:
        Persona vectors, Chen et al. 2025, arXiv:2507.21509.
    """

    directions: Mapping[int, Float[Tensor, "..."]]
    model: str
    pole: Pole | None
    label: str
    pooling: str
    counts: tuple[int, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "directions", dict(sorted(self.directions.items())))
        if not self.directions:
            raise DataError(f"{self.label}: a steering vector needs at least one layer")
        for layer, direction in self.directions.items():
            self._check(layer, direction)

    @classmethod
    def extract(  # noqa: PLR0913  (two sides, how to read them, and what they mean)
        cls,
        model: nn.Module,
        tokenizer: Any,
        positive: Sequence[Chat],
        negative: Sequence[Chat],
        *,
        layers: Sequence[int] | None = None,
        batch_size: int = 16,
        pole: Pole | None = None,
        label: str = "",
    ) -> "SteeringVector":
        """Return the mean activation over positive minus that over negative responses.

        Args:
            model: A causal language model; not changed. Its fingerprint is unknown to this
                function: set it with ``dataclasses.replace(vector, model=digest)``.
            tokenizer: With a chat template.
            positive: Chats that end with an assistant message which shows the pole.
            negative: Chats that end with one which does not, or shows the opposite.
            layers: Decoder blocks, ``-1`` the last; by default all of them, in the same pass.
            batch_size: Chats per forward pass; it changes speed and memory only.
            pole: What the positive responses show.
            label: Defaults to the pole.

        Raises:
            DataError: A side is empty, a chat has no response, or the two means are equal.
            NonFiniteError: The model's activations are NaN or infinite.
            ModelError: The model has no such layer.

        Source:
            Persona vectors, Chen et al. 2025, arXiv:2507.21509:
            ``v_l = mean_pos a_l - mean_neg a_l``, ``a_l(x)`` the mean over the response's tokens.
            Deviations: our layer ``l`` is their ``l + 1`` (they count the embeddings); the last
            layer is taken before the final norm, which is where steering acts; the end mark of
            the turn is not part of the response; a side is averaged as given, without a judge.
        """
        for side, chats in (("positive", positive), ("negative", negative)):
            if not chats:
                raise DataError(f"no {side} chats: both sides of a steering vector need at least 1")
        chosen = resolve_layers(
            model, range(len(decoder_blocks(model))) if layers is None else layers
        )
        plus, minus = (
            mean_response_activations(model, tokenizer, chats, chosen, batch_size)
            for chats in (positive, negative)
        )
        directions = {layer: (plus[layer] - minus[layer]).float() for layer in chosen}
        counts = (len(positive), len(negative))
        label = label or str(pole or "")
        return cls(directions, "", pole, label, "response_mean", counts)

    @property
    def layers(self) -> tuple[int, ...]:
        """0-based decoder blocks, ascending."""
        return tuple(self.directions)

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return next(iter(self.directions.values())).numel()

    def norm(self, layer: int) -> float:
        """Return the Euclidean norm at ``layer``, in the unit of the activation.

        Raises:
            TensorMismatchError: There is no direction for this layer.
        """
        return float(self[layer].double().norm())

    def cosine(self, other: "SteeringVector", layer: int) -> float:
        """Return the cosine of the angle to another vector of the same model, at ``layer``.

        Raises:
            BaseMismatchError: The two are of different models.
            TensorMismatchError: One has no direction for this layer, or the widths differ.
        """
        self._require_same_space(other)
        one, two = self[layer].double(), other[layer].double()
        return float(one @ two / (one.norm() * two.norm()))

    def __getitem__(self, layer: int) -> Float[Tensor, " hidden"]:
        """Return the direction at a 0-based ``layer``."""
        if layer not in self.directions:
            raise TensorMismatchError(
                f"{self.label}: has no direction for layer {layer}, only for {list(self.layers)}"
            )
        return self.directions[layer]

    def __add__(self, other: "SteeringVector") -> "SteeringVector":
        return self._combined(other, 1.0, f"{self.label} + {other.label}")

    def __sub__(self, other: "SteeringVector") -> "SteeringVector":
        return self._combined(other, -1.0, f"{self.label} - {other.label}")

    def __mul__(self, factor: float) -> "SteeringVector":
        if not math.isfinite(factor):
            raise NonFiniteError(f"{self.label}: cannot be scaled by {factor}")
        return replace(
            self,
            directions={layer: factor * vector for layer, vector in self.directions.items()},
            label=f"{factor:g} * ({self.label})",
            pole=self.pole if factor > 0 else None,
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "SteeringVector":
        if divisor == 0:
            raise NonFiniteError(f"{self.label}: cannot be divided by 0")
        return self * (1.0 / divisor)

    def __neg__(self) -> "SteeringVector":
        return replace(self * -1.0, label=f"-({self.label})")

    def save(self, directory: str | Path, *, force: bool = False) -> Path:
        """Write ``vector.safetensors``, ``vector.json`` and a manifest; it appears whole.

        Args:
            directory: Must not exist, unless ``force``.
            force: Replace a result that this tool wrote.

        Raises:
            OutputExistsError: The directory exists.
        """
        record = storage.Record(
            model=self.model,
            pole=self.pole,
            label=self.label,
            pooling=self.pooling,
            counts=self.counts,
            norms={layer: self.norm(layer) for layer in self.layers},
        )
        storage.write(Path(directory), record, self.directions, force=force)
        return Path(directory)

    @classmethod
    def load(cls, directory: str | Path) -> "SteeringVector":
        """Read a saved steering vector.

        Raises:
            CheckpointError: A file is missing or damaged, or the two disagree.
        """
        record, directions = storage.read(Path(directory))
        return cls(
            directions, record.model, record.pole, record.label, record.pooling, record.counts
        )

    def _combined(self, other: "SteeringVector", sign: float, label: str) -> "SteeringVector":
        self._require_same_space(other)
        odd = set(self.layers) ^ set(other.layers)
        if odd:
            raise TensorMismatchError(
                f"{self.label} and {other.label} do not cover the same layers: "
                f"only one of them has {sorted(odd)}"
            )
        return SteeringVector(
            {layer: self[layer] + sign * other[layer] for layer in self.layers},
            self.model,
            None,
            label,
            " + ".join(dict.fromkeys((self.pooling, other.pooling))),
            (self.counts[0] + other.counts[0], self.counts[1] + other.counts[1]),
        )

    def _require_same_space(self, other: "SteeringVector") -> None:
        if self.model != other.model:
            ours, theirs = (vector.model[:12] or "unknown" for vector in (self, other))
            raise BaseMismatchError(
                f"{self.label} is of model {ours} and {other.label} of model {theirs}; "
                "only vectors of one model can be compared or combined"
            )
        if self.hidden != other.hidden:
            raise TensorMismatchError(
                f"{self.label} is {self.hidden} wide and {other.label} is {other.hidden}; "
                "only vectors of one model can be compared or combined"
            )

    def _check(self, layer: int, direction: Tensor) -> None:
        where = f"{self.label or 'steering vector'}, layer {layer}"
        if layer < 0:
            raise DataError(f"{where}: a stored layer is 0-based; resolve negative ones first")
        if direction.shape != (self.hidden,) or direction.dtype != torch.float32:
            raise TensorMismatchError(
                f"{where}: should be {self.hidden} float32 numbers, "
                f"is {direction.dtype} of shape {list(direction.shape)}"
            )
        if not torch.isfinite(direction).all():
            raise NonFiniteError(f"{where}: the direction holds NaN or infinity")
        if not direction.any():
            raise DataError(f"{where}: the direction is zero, so it points nowhere")
