"""Saved steering vectors: a directory with ``vector.safetensors``, ``vector.json``, a manifest."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from personality_vector.checkpoint import AtomicDirectory, Checkpoint
from personality_vector.checkpoint.header import read_header
from personality_vector.errors import CheckpointError, some
from personality_vector.manifest import write_manifest
from personality_vector.recipes.fields import PoleField

_TENSORS = "vector.safetensors"
_RECORD = "vector.json"


class Record(BaseModel):
    """What ``vector.json`` holds: all of a steering vector but its numbers, and their norms."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["steering_vector"] = "steering_vector"
    format: Literal[2] = 2
    layer_convention: Literal[
        "0-based decoder block; the direction is added to the output of that block"
    ] = "0-based decoder block; the direction is added to the output of that block"
    model: str
    pole: PoleField | None
    label: str
    pooling: str
    counts: tuple[int, int]
    estimator: str
    template: str
    judge: str
    norms: dict[int, float]


def write(
    directory: Path,
    record: Record,
    directions: Mapping[int, Float[Tensor, " hidden"]],
    *,
    force: bool,
) -> None:
    """Write the three files; the directory appears whole or not at all.

    Raises:
        OutputExistsError: The directory exists, and ``force`` is off or it is not ours.
    """
    tensors = {_name(layer): vector.contiguous() for layer, vector in directions.items()}
    content = record.model_dump(mode="json")
    with AtomicDirectory(directory, force=force) as partial:
        save_file(tensors, partial / _TENSORS)
        (partial / _RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")
        write_manifest(partial, content.pop("kind"), content)


def read(directory: Path) -> tuple[Record, dict[int, Float[Tensor, " hidden"]]]:
    """Return the record and the directions.

    Raises:
        CheckpointError: A file is missing or damaged, or the two do not belong together.
    """
    record = _read_record(directory / _RECORD)
    stored = Checkpoint(directory, read_header(directory / _TENSORS))
    odd = set(stored.names) ^ {_name(layer) for layer in record.norms}
    if odd:
        raise CheckpointError(f"{directory}: {_TENSORS} and {_RECORD} disagree on {some(odd)}")
    directions = {layer: stored[_name(layer)] for layer in record.norms}
    for layer, direction in directions.items():
        norm = float(direction.double().norm())
        if not math.isclose(norm, record.norms[layer], rel_tol=1e-9):
            raise CheckpointError(
                f"{directory}: layer {layer} has norm {norm:g}, {_RECORD} says "
                f"{record.norms[layer]:g}; the two files do not belong together"
            )
    return record, directions


def _read_record(file: Path) -> Record:
    try:
        text = file.read_text(encoding="utf-8")
        _require_this_format(file, text)
        return Record.model_validate_json(text)
    except FileNotFoundError as error:
        raise CheckpointError(f"{file}: is missing; this is not a saved steering vector") from error
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise CheckpointError(f"{file}: is not the record of a steering vector: {error}") from error


def _require_this_format(file: Path, text: str) -> None:
    """Refuse a record of another version of this package; anything else is for pydantic."""
    try:
        found = _Version.model_validate_json(text).format
    except ValidationError:
        return
    if found != Record.model_fields["format"].default:
        raise CheckpointError(
            f"{file}: is a steering vector in format {found}, this version reads format "
            f"{Record.model_fields['format'].default}; extract it again"
        )


class _Version(BaseModel):
    kind: Literal["steering_vector"]
    format: int


def _name(layer: int) -> str:
    return f"layer.{layer}"
