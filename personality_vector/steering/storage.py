"""Tensors that are saved with a record: ``NAME.safetensors``, ``NAME.json`` and a manifest."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save_file
from torch import Tensor

from personality_vector.checkpoint import AtomicDirectory, Checkpoint
from personality_vector.checkpoint.header import read_header
from personality_vector.errors import CheckpointError, some
from personality_vector.manifest import write_manifest
from personality_vector.recipes.schema import PoleField

if TYPE_CHECKING:
    from typing import Self


class Record(BaseModel):
    """What ``NAME.json`` holds: all of a thing but its numbers.

    Attributes:
        what: The thing, for messages.
        stem: ``NAME``.
        kind: Of the manifest; a subclass gives it and ``format`` as literals.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: ClassVar[str]
    stem: ClassVar[str]
    kind: str
    format: int
    model: str
    pole: PoleField | None
    label: str
    counts: tuple[int, int]

    def write(self, directory: Path, tensors: Mapping[str, Tensor], *, force: bool) -> None:
        """Write the three files; the directory appears whole or not at all.

        Raises:
            OutputExistsError: The directory exists, and ``force`` is off or it is not ours.
        """
        stored = {name: tensor.contiguous() for name, tensor in tensors.items()}
        content = self.model_dump(mode="json")
        with AtomicDirectory(directory, force=force) as partial:
            save_file(stored, partial / f"{self.stem}.safetensors")
            text = self.model_dump_json(indent=2) + "\n"
            (partial / f"{self.stem}.json").write_text(text, encoding="utf-8")
            write_manifest(partial, content.pop("kind"), content)

    @classmethod
    def read(cls, directory: Path) -> "tuple[Self, Checkpoint]":
        """Return the record and the tensors.

        Raises:
            CheckpointError: A file is missing or damaged, or of another version of this package.
        """
        file = directory / f"{cls.stem}.json"
        kind, newest = (cls.model_fields[name].default for name in ("kind", "format"))
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            is_ours = isinstance(found, dict) and found.get("kind") == kind
            if is_ours and isinstance(found.get("format"), int) and found["format"] != newest:
                raise CheckpointError(
                    f"{file}: is a {cls.what} in format {found['format']}, this version reads "
                    f"format {newest}; make it again"
                )
            record = cls.model_validate(found)
        except FileNotFoundError as error:
            raise CheckpointError(f"{file}: is missing; this is not a saved {cls.what}") from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file}: is not the record of a {cls.what}: {error}") from error
        return record, Checkpoint(directory, read_header(directory / f"{cls.stem}.safetensors"))


class VectorRecord(Record):
    """What ``vector.json`` holds: all of a steering vector but its numbers, and their norms."""

    what = "steering vector"
    stem = "vector"
    kind: Literal["steering_vector"] = "steering_vector"
    format: Literal[2] = 2
    layer_convention: Literal[
        "0-based decoder block; the direction is added to the output of that block"
    ] = "0-based decoder block; the direction is added to the output of that block"
    pooling: str
    estimator: str
    template: str
    judge: str
    norms: dict[int, float]


def read_vector(directory: Path) -> tuple[VectorRecord, dict[int, Float[Tensor, " hidden"]]]:
    """Return the record and the directions of a saved steering vector.

    Raises:
        CheckpointError: A file is missing or damaged, or the two do not belong together.
    """
    record, stored = VectorRecord.read(directory)
    names = {layer: f"layer.{layer}" for layer in record.norms}
    odd = set(stored.names) ^ set(names.values())
    if odd:
        raise CheckpointError(
            f"{directory}: vector.safetensors and vector.json disagree on {some(odd)}"
        )
    directions = {layer: stored[name] for layer, name in names.items()}
    for layer, direction in directions.items():
        norm = float(direction.double().norm())
        if not math.isclose(norm, record.norms[layer], rel_tol=1e-9):
            raise CheckpointError(
                f"{directory}: layer {layer} has norm {norm:g}, vector.json says "
                f"{record.norms[layer]:g}; the two files do not belong together"
            )
    return record, directions
