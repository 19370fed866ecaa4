"""Three fine-tunes whose arithmetic is exact, so that an oracle must agree bit for bit."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

SHAPES = {"a.weight": (40, 30), "b.weight": (500,), "c.bias": (7, 11, 3)}
SCALES = {"a.weight": 1, "b.weight": 8, "c.bias": 3}
"""Tensors of unlike scales, so that a global trim keeps other entries than one per tensor."""


def write(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    path.mkdir()
    save_file(tensors, path / "model.safetensors")
    return path


@pytest.fixture
def exact(tmp_path: Path) -> tuple[Path, list[Path]]:
    """Return a base and three fine-tunes: multiples of 2**-14, every delta non-zero.

    Within a tensor all magnitudes of a delta differ.
    """
    generator = np.random.default_rng(0)
    base = {n: generator.integers(-9999, 9999, s) / np.float32(2**14) for n, s in SHAPES.items()}
    base = {name: tensor.astype(np.float32) for name, tensor in base.items()}
    tuned = []
    for number in range(3):
        end = {}
        for name, shape in SHAPES.items():
            ranks = generator.permutation(np.prod(shape)).reshape(shape) + 1
            signs = generator.choice([-1, 1], shape)
            steps = SCALES[name] * ranks * signs / 2**14
            end[name] = (base[name] + steps).astype(np.float32)
        tuned.append(write(tmp_path / f"tuned-{number}", end))
    return write(tmp_path / "base", base), tuned


@pytest.fixture
def flat():
    """Return ``flat(path)``: all tensors of a checkpoint as one float32 vector, by name."""

    def read(path: Path) -> np.ndarray:
        found = load_file(path / "model.safetensors")
        return np.concatenate([found[name].reshape(-1) for name in sorted(found)])

    return read
