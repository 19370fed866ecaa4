"""The one rounding at the end, and how much of the ideal change survives it."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from personality_vector.errors import NonFiniteError, RecipeError
from personality_vector.numeric import dot, pieces
from personality_vector.rng import uniform

Rounding = Literal["nearest", "stochastic"]


def round_to(
    tensor: Float[Tensor, "*shape"], dtype: torch.dtype, rounding: Rounding, key: int
) -> Tensor:
    """Return float32 ``tensor`` in ``dtype``, rounded once.

    Args:
        tensor: float32.
        dtype: Any floating dtype.
        rounding: ``nearest`` (ties to even) or ``stochastic``: up or down with the probability
            that makes the expectation exact. Only bfloat16 has the latter.
        key: Of the random stream of this tensor.

    Raises:
        NonFiniteError: A finite value does not fit ``dtype``.
        RecipeError: Stochastic rounding to another dtype than bfloat16.
    """
    rounded = tensor.to(dtype) if rounding == "nearest" else _stochastic(tensor, dtype, key)
    if rounded.numel() and not bool(torch.isfinite(torch.stack(torch.aminmax(rounded))).all()):
        largest = float(tensor.abs().max())
        remedy = "write output.dtype: float32" if math.isfinite(largest) else "lower alpha"
        raise NonFiniteError(f"{largest:.3g} does not fit {dtype}; {remedy}")
    return rounded


def _stochastic(tensor: Tensor, dtype: torch.dtype, key: int) -> Tensor:
    if dtype != torch.bfloat16:
        raise RecipeError(f"rounding: stochastic is for bfloat16 outputs, this one is {dtype}")
    # bfloat16 is the upper half of float32: adding 16 random bits below carries with the right
    # probability, also for negative numbers, whose magnitude is what the bits hold.
    flat = tensor.reshape(-1)
    rounded = torch.empty_like(flat, dtype=torch.bfloat16)
    for part in pieces(flat.numel()):
        noise = uniform(key, part.start, part.stop - part.start, tensor.device) * (1 << 16)
        bits = flat[part].view(torch.int32) + noise.to(torch.int32)
        rounded[part] = (bits & ~0xFFFF).view(torch.float32).to(torch.bfloat16)
    return rounded.reshape(tensor.shape)


@dataclass(slots=True)
class Realised:
    """Projection of the written change on the ideal change; 1 where nothing was lost.

    bfloat16 keeps 8 bits: an edit smaller than half a step of the weight is rounded away, so that a
    nominal alpha of 0.1 can act as 0.03.
    """

    dot: float = 0.0
    square: float = 0.0

    def add(self, ideal: Tensor, written: Tensor) -> float | None:
        """Take in one tensor's ideal and written change; return its own share."""
        along, square = dot(written, ideal), dot(ideal, ideal)
        self.dot += along
        self.square += square
        return along / square if square else None

    def reset(self) -> None:
        """Forget every tensor."""
        self.dot = self.square = 0.0

    @property
    def share(self) -> float | None:
        """``<written, ideal> / <ideal, ideal>`` over all tensors; ``None`` if nothing changes."""
        return self.dot / self.square if self.square else None
