"""The model that is baked into: its configuration, its names on disk, and writing it edited."""

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from personality_vector.checkpoint import Checkpoint, ShardWriter, TensorPlan
from personality_vector.checkpoint.writer import shard_names, write_index
from personality_vector.errors import (
    CheckpointError,
    DataError,
    NonFiniteError,
    blame,
)
from personality_vector.steering.bake.routes import Family
from personality_vector.steering.fit import resolved
from personality_vector.steering.vector import SteeringVector
from personality_vector.subject import models


@dataclass(frozen=True, slots=True)
class Base:
    """A checkpoint, and where its family writes to the residual stream.

    Attributes:
        checkpoint: On disk.
        config: As transformers reads it, with every default filled in.
        family: The family of its architecture.
    """

    checkpoint: Checkpoint
    config: Any
    family: Family

    @property
    def prefix(self) -> str:
        """Prefix of the names on disk: the family's root and a dot, or "" if they lack it."""
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
            CheckpointError: The checkpoint does not have this tensor.
        """
        name = f"{self.prefix}{module}.weight"
        if name not in self.checkpoint.entries:
            raise CheckpointError(
                f"{self.checkpoint.path}: has no tensor {name}, which every "
                f"{self.config.model_type} has; config.json and weights do not belong together"
            )
        return name


def read_config(checkpoint: Checkpoint) -> Any:
    """Return the configuration of a checkpoint; see :func:`subject.models.read_config`."""
    return models.read_config(checkpoint.path)


def scaled_directions(
    base: Base, vector: SteeringVector, layers: Sequence[int], coefficient: float
) -> dict[int, Float[Tensor, " hidden"]]:
    """Return ``coefficient * v_l`` for each layer ``l``, ``-1`` being the last block.

    Raises:
        ModelError: The model does not have one of these blocks.
        TensorMismatchError: The vector has no direction for it.
        DataError: No layer is given, one is given twice, or the coefficient is 0.
        NonFiniteError: The coefficient is NaN or infinite, or the product is.
    """
    if not math.isfinite(coefficient):
        raise NonFiniteError(f"the coefficient must be a finite number, got {coefficient}")
    if coefficient == 0:
        raise DataError("coefficient 0 leaves the model as it is, so there is nothing to bake")
    shifts = {layer: coefficient * vector[layer] for layer in resolved(layers, base.layers)}
    for layer, shift in shifts.items():
        if not torch.isfinite(shift).all():
            raise NonFiniteError(f"layer {layer}: {coefficient:g} times the vector overflows")
    return shifts


@dataclass(frozen=True, slots=True)
class Edit:
    """A tensor of the export that the base lacks or stores with other values.

    Attributes:
        plan: Its name, dtype and shape.
        exact: Makes it, not rounded, when it is written; so one exists at a time.
    """

    plan: TensorPlan
    exact: Callable[[], Tensor]

    def values(self) -> Tensor:
        """Return what is written: rounded once, to the planned dtype."""
        rounded = self.exact().to(self.plan.dtype)
        if not torch.isfinite(rounded).all():
            name, dtype = self.plan.name, self.plan.dtype
            raise NonFiniteError(f"{name}: is not finite in {dtype}; use a smaller coefficient")
        return rounded


Edits = Mapping[str, Edit]


def size_of(checkpoint: Checkpoint, edits: Edits) -> int:
    """Return the bytes of the weights that :func:`write_checkpoint` writes."""
    files = sum(file.stat().st_size for file in _files(checkpoint))
    return files + sum(e.plan.size for name, e in edits.items() if name not in checkpoint.entries)


def write_checkpoint(
    checkpoint: Checkpoint, edits: Edits, config: Mapping[str, Any], directory: Path
) -> None:
    """Write the base with ``edits`` and another config.json; the rest is the base's, byte for byte.

    Files are copied as files and edited tensors overwritten in place; new tensors are one more
    shard. Memory: one edited tensor.

    Raises:
        NonFiniteError: An edited tensor is not finite in its dtype.
    """
    files, entries = _files(checkpoint), checkpoint.entries
    plans = [edit.plan for name, edit in edits.items() if name not in entries]
    added = sum(plan.size for plan in plans)
    names = shard_names(len(files) + bool(plans))
    copies = dict(zip(files, names, strict=False))
    for file, name in copies.items():
        shutil.copyfile(file, directory / name)
    for name in edits.keys() & entries.keys():
        with blame(tensor=name):
            values = edits[name].values().contiguous().reshape(-1).view(torch.uint8)
            with (directory / copies[entries[name].file]).open("r+b") as stream:
                stream.seek(entries[name].start)
                stream.write(values.numpy().data)
    if plans:
        with ShardWriter(directory, plans, max(1, added), Path(names[-1]).stem) as writer:
            for plan in plans:
                writer.write(plan.name, edits[plan.name].values())
    if len(names) > 1:
        weight_map = {name: copies[entry.file] for name, entry in entries.items()}
        weight_map |= {plan.name: names[-1] for plan in plans}
        size = added + sum(entry.end - entry.start for entry in entries.values())
        write_index(directory, size, dict(sorted(weight_map.items())))
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    checkpoint.copy_side_files(directory)


def _files(checkpoint: Checkpoint) -> list[Path]:
    return sorted({entry.file for entry in checkpoint.entries.values()})
