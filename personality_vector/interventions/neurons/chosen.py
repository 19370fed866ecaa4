"""The neurons of a pole and of its opposite, with how they differ and how strong they get."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from personality_vector.checkpoint import Checkpoint
from personality_vector.errors import (
    CheckpointError,
    DataError,
    NonFiniteError,
    some,
)
from personality_vector.steering.storage import Record
from personality_vector.traits import Pole

_SIDES = ("positive", "negative")
_COLUMNS = ("index", "difference", "a95")
_NAME = re.compile(rf"({'|'.join(_SIDES)})\.layer\.(\d+)\.({'|'.join(_COLUMNS)})")


class NeuronRecord(Record):
    """The content of ``neurons.json``: a set of neurons with counts instead of numbers."""

    what = "set of neurons"
    stem = "neurons"
    kind: Literal["neurons"] = "neurons"
    format: Literal[1] = 1
    neuron_convention: Literal[
        "output of the activation function in the MLP of a 0-based decoder block"
    ] = "output of the activation function in the MLP of a 0-based decoder block"
    sizes: tuple[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Neurons:
    """Some neurons of one block.

    Attributes:
        index: Which ones, ascending; int64.
        difference: ``Pr(act > 0)`` over the responses of their own pole minus that over those of
            the other, in (0, 1]; float32.
        a95: 95th percentile of the activation over the responses of their own pole; float32.

    Raises:
        DataError: There is no neuron, the index is not ascending, or a number is out of range.
        NonFiniteError: A number is NaN or infinite.
    """

    index: Int[Tensor, " n"]
    difference: Float[Tensor, " n"]
    a95: Float[Tensor, " n"]

    def __post_init__(self) -> None:
        if not torch.isfinite(torch.stack([self.difference, self.a95])).all():
            raise NonFiniteError("neurons: a difference or an activation is NaN or infinite")
        if not len(self.index) or self.index[0] < 0 or (self.index.diff() <= 0).any():
            raise DataError("neurons: need at least one index from 0, in ascending order")
        if ((self.difference <= 0) | (self.difference > 1)).any() or (self.a95 < 0).any():
            raise DataError("neurons: a difference must be in (0, 1] and an activation at least 0")


@dataclass(frozen=True, slots=True, eq=False)
class NeuronSet:
    """The neurons that are active more often under one pole, and under the other.

    Attributes:
        positive: 0-based decoder block to the neurons of ``pole``.
        negative: The same for its opposite; no neuron is in both.
        model: Hex digest of the fingerprint of the model; "" where that is unknown.
        pole: The pole of the positive neurons, if any.
        label: Name in messages and reports.
        counts: Number of positive and of negative chats that were compared.

    Raises:
        DataError: A side has no neurons, or both name the same one.
    """

    positive: Mapping[int, Neurons]
    negative: Mapping[int, Neurons]
    model: str
    pole: Pole | None
    label: str
    counts: tuple[int, int]

    def __post_init__(self) -> None:
        for name, side in (("positive", self.positive), ("negative", self.negative)):
            if not side:
                raise DataError(
                    f"{self.label}: the {name} side has no neurons; it needs at least one"
                )
        for layer in self.positive.keys() & self.negative.keys():
            if torch.isin(self.positive[layer].index, self.negative[layer].index).any():
                raise DataError(f"{self.label}: layer {layer} has a neuron on both sides")

    @property
    def sizes(self) -> tuple[int, int]:
        """Number of positive and of negative neurons."""
        positive, negative = (
            sum(len(found.index) for found in side.values())
            for side in (self.positive, self.negative)
        )
        return positive, negative

    def save(self, directory: str | Path, *, force: bool = False) -> Path:
        """Write ``neurons.safetensors``, ``neurons.json`` and a manifest; it appears whole.

        Raises:
            OutputExistsError: The directory exists, without ``force`` or not written by this tool.
        """
        record = NeuronRecord(
            model=self.model,
            pole=self.pole,
            label=self.label,
            counts=self.counts,
            sizes=self.sizes,
        )
        tensors = {
            f"{side}.layer.{layer}.{name}": getattr(found, name)
            for side in _SIDES
            for layer, found in getattr(self, side).items()
            for name in _COLUMNS
        }
        return record.write(Path(directory), tensors, force=force)

    @classmethod
    def load(cls, directory: str | Path) -> "NeuronSet":
        """Read saved neurons.

        Raises:
            CheckpointError: A file is missing or damaged, or the two disagree.
            DataError: The stored numbers do not describe neurons.
        """
        record, stored = NeuronRecord.read(Path(directory))
        found = cls(
            **_sides(stored),
            model=record.model,
            pole=record.pole,
            label=record.label,
            counts=record.counts,
        )
        if found.sizes != record.sizes:
            raise CheckpointError(
                f"{directory}: neurons.safetensors has {found.sizes} positive and negative "
                f"neurons, neurons.json says {record.sizes}; the two files do not belong together"
            )
        return found


def _sides(stored: Checkpoint) -> dict[str, dict[int, Neurons]]:
    """Return the saved neurons of both sides, by layer."""
    found: dict[tuple[str, int], dict[str, Tensor]] = defaultdict(dict)
    for name in stored.names:
        match = _NAME.fullmatch(name)
        if match is None:
            raise CheckpointError(f"{stored.path}: {name} is not a column of neurons")
        side, layer, column = match.groups()
        found[side, int(layer)][column] = stored[name]
    sides: dict[str, dict[int, Neurons]] = {side: {} for side in _SIDES}
    for (side, layer), columns in found.items():
        lengths = {tuple(column.shape) for column in columns.values()}
        if len(columns) < len(_COLUMNS) or len(lengths) > 1:
            raise CheckpointError(
                f"{stored.path}: {side}.layer.{layer} needs {some(_COLUMNS)} of one length"
            )
        sides[side][layer] = Neurons(**columns)
    return sides
