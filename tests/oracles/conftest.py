"""Fine-tunes whose arithmetic is exact, so that an oracle must agree bit for bit."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

SHAPES = {"a.weight": (40, 30), "b.weight": (500,), "c.bias": (7, 11, 3), "d.weight": (3, 50_021)}
SCALES = {"a.weight": 300, "b.weight": 400, "c.bias": 1000, "d.weight": 1}
"""Tensors of unlike scales, so that a global trim keeps other entries than one per tensor. The last
is larger than what a merge computes at once (65,536 entries)."""

UNIT = 2.0**-20


def write(path: Path, tensors: dict[str, np.ndarray], *, sharded: bool = False) -> Path:
    """Write a checkpoint: one file, or one for each tensor."""
    path.mkdir()
    if not sharded:
        save_file(tensors, path / "model.safetensors")
        return path
    files = {
        name: f"model-{number:05}-of-{len(tensors):05}.safetensors"
        for number, name in enumerate(sorted(tensors, reverse=True), 1)
    }
    for name, file in files.items():
        save_file({name: tensors[name]}, path / file)
    lines = ", ".join(f'"{name}": "{file}"' for name, file in files.items())
    (path / "model.safetensors.index.json").write_text(f'{{"weight_map": {{{lines}}}}}')
    return path


@pytest.fixture(scope="session")
def exact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """Return a base and three fine-tunes: multiples of 2**-20, every delta non-zero.

    All magnitudes of a delta differ, within a tensor and between tensors. The second fine-tune is
    in shards.
    """
    folder = tmp_path_factory.mktemp("exact")
    generator = np.random.default_rng(0)
    base = {
        name: generator.integers(-9_999_999, 9_999_999, shape) for name, shape in SHAPES.items()
    }
    tuned = []
    for number in range(3):
        end = {}
        for place, (name, shape) in enumerate(SHAPES.items()):
            ranks = generator.permutation(np.prod(shape)).reshape(shape) + 1
            steps = len(SHAPES) * SCALES[name] * ranks + place  # all differ, whatever the tensor
            end[name] = base[name] + steps * generator.choice([-1, 1], shape)
        tuned.append(write(folder / f"tuned-{number}", in_units(end), sharded=number == 1))
    return write(folder / "base", in_units(base)), tuned


def in_units(steps: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return whole numbers below 2**24 as float32 multiples of a unit: exact."""
    return {name: (tensor * UNIT).astype(np.float32) for name, tensor in steps.items()}


@pytest.fixture(scope="session")
def flat():
    """Return ``flat(path)``: all tensors of a checkpoint as one float64 vector, by name."""

    def read(path: Path) -> np.ndarray:
        found = {k: t for file in path.glob("*.safetensors") for k, t in load_file(file).items()}
        return np.concatenate([found[name].reshape(-1) for name in sorted(found)]).astype(float)

    return read
