"""Raw safetensors files, made without the package."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from personality_vector.numeric.random import generator_for

Tensors = dict[str, Tensor]


@pytest.fixture
def raw(tmp_path: Path) -> Callable[..., Path]:
    """Return ``raw(header, data)``: a file with this header (JSON-like or bytes) and data."""

    def write(header: Any, data: bytes = b"", name: str = "model.safetensors") -> Path:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        file = tmp_path / name
        file.write_bytes(len(text).to_bytes(8, "little") + text + data)
        return file

    return write


@pytest.fixture
def tensors() -> Tensors:
    """Return tensors of several dtypes and ranks; ``long`` is larger than what is sampled."""
    generator = generator_for(0, "tensors")
    return {
        "a.weight": torch.randn(6, 5, generator=generator),
        "b.weight": torch.randn(7, 3, generator=generator).bfloat16(),
        "count": torch.tensor(12),
        "long": torch.randn(40_000, generator=generator),
        "none": torch.zeros(0, 4),
    }


@pytest.fixture
def single(tmp_path: Path) -> Callable[..., Path]:
    """Return ``single(tensors, name)``: a checkpoint directory of one file."""

    def write(tensors: Tensors, name: str = "single") -> Path:
        path = tmp_path / name
        path.mkdir()
        save_file(tensors, path / "model.safetensors")
        return path

    return write


@pytest.fixture
def sharded(tmp_path: Path) -> Callable[..., Path]:
    """Return ``sharded(tensors, name)``: a checkpoint of one shard for each tensor, with an index.

    The weight map can be changed by ``edit``, a function from the map to the one written.
    """

    def write(tensors: Tensors, name: str = "sharded", edit: Any = None) -> Path:
        path = tmp_path / name
        path.mkdir()
        weight_map = {}
        for number, key in enumerate(sorted(tensors, reverse=True), 1):
            weight_map[key] = f"model-{number:05}-of-{len(tensors):05}.safetensors"
            save_file({key: tensors[key]}, path / weight_map[key])
        index = {"metadata": {}, "weight_map": edit(weight_map) if edit else weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        return path

    return write
