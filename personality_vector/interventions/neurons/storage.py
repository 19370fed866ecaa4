"""Saved neurons: a directory with ``neurons.safetensors``, ``neurons.json`` and a manifest."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from personality_vector.checkpoint import AtomicDirectory, Checkpoint
from personality_vector.checkpoint.header import read_header
from personality_vector.errors import CheckpointError, some
from personality_vector.manifest import write_manifest
from personality_vector.recipes.fields import PoleField

SIDES = ("positive", "negative")
COLUMNS = ("index", "difference", "a95")
Sides = dict[str, dict[int, dict[str, Tensor]]]
"""Side to 0-based decoder block to column to ``(n,)``."""

_TENSORS = "neurons.safetensors"
_RECORD = "neurons.json"
_NAME = re.compile(rf"({'|'.join(SIDES)})\.layer\.(\d+)\.({'|'.join(COLUMNS)})")


class Record(BaseModel):
    """What ``neurons.json`` holds: all of a set of neurons but its numbers, and how many."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["neurons"] = "neurons"
    format: Literal[1] = 1
    neuron_convention: Literal[
        "output of the activation function in the MLP of a 0-based decoder block"
    ] = "output of the activation function in the MLP of a 0-based decoder block"
    model: str
    pole: PoleField | None
    label: str
    counts: tuple[int, int]
    sizes: tuple[int, int]


def write(directory: Path, record: Record, tensors: Mapping[str, Tensor], *, force: bool) -> None:
    """Write the three files; the directory appears whole or not at all.

    Raises:
        OutputExistsError: The directory exists, and ``force`` is off or it is not ours.
    """
    content = record.model_dump(mode="json")
    with AtomicDirectory(directory, force=force) as partial:
        save_file(
            {name: tensor.contiguous() for name, tensor in tensors.items()}, partial / _TENSORS
        )
        (partial / _RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
        write_manifest(partial, content.pop("kind"), content)


def read(directory: Path) -> tuple[Record, Sides]:
    """Return the record and the columns of both sides.

    Raises:
        CheckpointError: A file is missing or damaged, or the two do not belong together.
    """
    record = _read_record(directory / _RECORD)
    stored = Checkpoint(directory, read_header(directory / _TENSORS))
    sides: Sides = {side: {} for side in SIDES}
    for name in stored.names:
        match = _NAME.fullmatch(name)
        if match is None:
            raise CheckpointError(f"{directory / _TENSORS}: {name} is no column of neurons")
        side, layer, column = match.groups()
        sides[side].setdefault(int(layer), {})[column] = stored[name]
    for side, size in zip(SIDES, record.sizes, strict=True):
        _require_whole(directory, side, sides[side], size)
    return record, sides


def _require_whole(
    directory: Path, side: str, layers: Mapping[int, Mapping[str, Tensor]], size: int
) -> None:
    for layer, columns in layers.items():
        lengths = {tuple(column.shape) for column in columns.values()}
        if len(columns) < len(COLUMNS) or len(lengths) > 1:
            raise CheckpointError(
                f"{directory / _TENSORS}: {side}.layer.{layer} needs {some(COLUMNS)} of one length"
            )
    found = sum(columns["index"].numel() for columns in layers.values())
    if found != size:
        raise CheckpointError(
            f"{directory}: {_TENSORS} has {found} {side} neurons, {_RECORD} says {size}; the two "
            "files do not belong together"
        )


def _read_record(file: Path) -> Record:
    try:
        return Record.model_validate_json(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: is missing; these are no saved neurons") from error
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise CheckpointError(f"{file}: is not the record of neurons: {error}") from error
