"""Weights of an export: the base's files, copied; some tensors overwritten there, some added."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from personality_vector.checkpoint import Checkpoint, ShardWriter, TensorPlan
from personality_vector.checkpoint.header import TensorEntry
from personality_vector.checkpoint.writer import write_index
from personality_vector.errors import NonFiniteError, TensorMismatchError, blame


class Edit(NamedTuple):
    """A tensor of the export that the base has otherwise or not at all."""

    plan: TensorPlan
    values: Callable[[], Tensor]
    """Makes it when it is written, in the planned dtype and shape; so one exists at a time."""


Edits = Mapping[str, Edit]


def edit(name: str, dtype: torch.dtype, shape: tuple[int, ...], make: Callable[[], Tensor]) -> Edit:
    """Return an edit that rounds what ``make`` returns to ``dtype``, once."""

    def values() -> Tensor:
        exact = make()
        rounded = exact.to(dtype)
        if not torch.isfinite(rounded).all():
            raise NonFiniteError(f"{name}: is not finite in {dtype}; use a smaller coefficient")
        return rounded

    return Edit(TensorPlan(name, dtype, shape), values)


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
    _write_added([edits[name] for name in added], directory, names[-1])
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


def _write_added(added: list[Edit], directory: Path, name: str) -> None:
    if added:
        plans = [one.plan for one in added]
        size = sum(plan.size for plan in plans)
        with ShardWriter(directory, plans, max(1, size), Path(name).stem) as writer:
            for one in added:
                writer.write(one.plan.name, one.values())
