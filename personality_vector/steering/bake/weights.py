"""Weights of an export: the base's files, copied; some tensors overwritten there, some added."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from personality_vector.checkpoint import Checkpoint, ShardWriter, TensorPlan
from personality_vector.checkpoint.header import TensorEntry
from personality_vector.checkpoint.writer import write_index
from personality_vector.errors import NonFiniteError, TensorMismatchError, blame


@dataclass(frozen=True, slots=True)
class Edit:
    """A tensor of the export that the base has otherwise or not at all.

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


def write_checkpoint(
    checkpoint: Checkpoint, edits: Edits, config: Mapping[str, Any], directory: Path
) -> None:
    """Write the base with ``edits`` and another config.json; see :func:`write_weights`."""
    write_weights(checkpoint, edits, directory)
    text = json.dumps(config, indent=2) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")
    checkpoint.copy_side_files(directory)


def size_of(checkpoint: Checkpoint, edits: Edits) -> int:
    """Return the bytes of the weights that :func:`write_weights` writes."""
    files = sum(file.stat().st_size for file in _files(checkpoint))
    return files + sum(e.plan.size for name, e in edits.items() if name not in checkpoint.entries)


def write_weights(checkpoint: Checkpoint, edits: Edits, directory: Path) -> None:
    """Write the base's weights with ``edits``; what is not edited is the base's, byte for byte.

    Files are copied as files and edited tensors overwritten in place; new tensors are one more
    shard. Memory: one edited tensor.

    Raises:
        NonFiniteError: An edited tensor is not finite in its dtype.
    """
    files, entries = _files(checkpoint), checkpoint.entries
    added = [name for name in edits if name not in entries]
    names = _shard_names(len(files) + bool(added))
    copies = dict(zip(files, names, strict=False))
    for file, name in copies.items():
        shutil.copyfile(file, directory / name)
    for name in edits.keys() & entries.keys():
        with blame(tensor=name):
            _overwrite(directory / copies[entries[name].file], entries[name], edits[name].values())
    if added:
        plans = [edits[name].plan for name in added]
        size = sum(plan.size for plan in plans)
        with ShardWriter(directory, plans, max(1, size), Path(names[-1]).stem) as writer:
            for name in added:
                writer.write(name, edits[name].values())
    if len(names) > 1:
        weight_map = {name: copies[entry.file] for name, entry in entries.items()}
        weight_map |= dict.fromkeys(added, names[-1])
        sizes = [entry.end - entry.start for entry in entries.values()]
        size = sum(sizes) + sum(edits[name].plan.size for name in added)
        write_index(directory, size, dict(sorted(weight_map.items())))


def _files(checkpoint: Checkpoint) -> list[Path]:
    return sorted({entry.file for entry in checkpoint.entries.values()})


def _shard_names(count: int) -> list[str]:
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]


def _overwrite(file: Path, entry: TensorEntry, values: Tensor) -> None:
    if (values.dtype, tuple(values.shape)) != (entry.dtype, entry.shape):
        raise TensorMismatchError(
            f"{entry.name}: is {entry.dtype} {list(entry.shape)} and was to become "
            f"{values.dtype} {list(values.shape)}"
        )
    with file.open("r+b") as stream:
        stream.seek(entry.start, os.SEEK_SET)
        stream.write(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)
