"""Toy checkpoints of a few tensors, slices of plain tensors, and weights that are hard to merge."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from personality_vector.merging.terms import Slice
from personality_vector.numeric.random import generator_for, uniform


@pytest.fixture(scope="session")
def write_toy() -> Callable[..., Path]:
    """Return ``write_toy(path, tensors)``: a checkpoint directory with a config."""

    def write(path: Path, tensors: dict[str, Tensor]) -> Path:
        path.mkdir(parents=True)
        own = {key: tensor.clone().contiguous() for key, tensor in tensors.items()}
        save_file(own, path / "model.safetensors")
        (path / "config.json").write_text('{"model_type": "toy"}')
        return path

    return write


@pytest.fixture
def toy(tmp_path: Path, write_toy: Callable[..., Path]) -> Callable[..., Path]:
    """Return ``toy(name, **tensors)``: a checkpoint directory with these tensors and a config."""

    def write(name: str, **tensors: Tensor) -> Path:
        return write_toy(tmp_path / name, tensors)

    return write


class Part(Slice):
    """One term's whole tensor, as a method sees it; the global threshold is that of the tensor."""

    alpha, columns, delta, start = 1.0, 1, None, 0

    def __init__(self, alpha: float, delta: Tensor, **given: int) -> None:
        self.__dict__.update({"key": 0, "scopes": []}, alpha=alpha, delta=delta, **given)

    def uniform(self) -> Tensor:
        return uniform(self.key, self.start, self.delta.numel())

    def threshold(self, density: float, scope: str) -> float:
        self.scopes.append(scope)
        if density == 1.0:
            return 0.0
        magnitudes = self.delta.abs().float().sort(descending=True).values
        return float(magnitudes[max(1, int(density * len(magnitudes))) - 1])

    def survey(self, _what: str, measure: Callable[[Callable[[], Any]], Any]) -> Any:
        return measure(lambda: iter([self]))


@pytest.fixture(scope="session")
def part() -> Callable[..., Part]:
    """Return ``part(alpha, entries, ...)``: a slice of a float64 tensor."""

    def make(alpha: float, entries: Sequence[float] | Tensor, **given: Any) -> Part:
        return Part(alpha, torch.as_tensor(entries, dtype=torch.float64).reshape(-1), **given)

    return make


@pytest.fixture(scope="session")
def hard_weights() -> Callable[..., Tensor]:
    """Return ``hard_weights(name, count, around=None)``: bfloat16 that a loop can get wrong.

    Every fifth is special: a zero of either sign, denormal, tiny, huge, or the same as before. With
    ``around``, the entries are near those, and a third of them are the same or opposite changes.
    """

    def draw(name: str, count: int, around: Tensor | None = None) -> Tensor:
        generator = generator_for(0, name)
        drawn = torch.randn(count, generator=generator)
        pick = torch.randint(0, 35, (count,), generator=generator)
        if around is not None:
            # Steps of a whole number make equal magnitudes, and votes that end in a tie.
            steps = torch.where(pick % 3 == 0, drawn.round(), drawn) / 8
            tuned = (around.float() + steps).bfloat16()
            return torch.where(pick % 7 == 0, around, tuned)
        special = torch.tensor([0.0, -0.0, 1e-40, -9.2e-41, 2.0**-126, 1e30, -1e30])
        return torch.where(pick < 7, special[pick.clamp(max=6)], drawn).bfloat16()

    return draw
