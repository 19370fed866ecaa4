"""Toy checkpoints of a few tensors."""

from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import Tensor


@pytest.fixture
def toy(tmp_path: Path) -> Callable[..., Path]:
    """Return ``toy(name, **tensors)``: a checkpoint directory with these tensors and a config."""

    def write(name: str, **tensors: Tensor) -> Path:
        path = tmp_path / name
        path.mkdir()
        save_file(
            {key: tensor.clone() for key, tensor in tensors.items()}, path / "model.safetensors"
        )
        (path / "config.json").write_text('{"model_type": "toy"}')
        return path

    return write
