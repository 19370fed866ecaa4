"""What a tensor of a checkpoint is, before any of its data is read."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from personality_vector.files.header import read_table

FLOATS: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
"""What weights may be loaded and written as, by the name that a recipe gives."""

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Every dtype that is read, by its name in the header of a safetensors file."""
NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorPlan:
    """A tensor that is or will be in a file: its name, dtype and shape."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes of data."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class TensorEntry(TensorPlan):
    """Where one tensor lies: ``file[start:end]``, row-major, little-endian."""

    file: Path
    start: int
    end: int


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Return the tensors of a safetensors file by name.

    Raises:
        CheckpointError: The file or its header is damaged.
    """
    return {
        name: TensorEntry(name, DTYPES[one.dtype], one.shape, file, one.start, one.end)
        for name, one in read_table(file).items()
    }
