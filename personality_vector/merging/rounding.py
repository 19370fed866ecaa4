"""The one rounding at the end, and how much of the ideal change survives it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Float64, Shaped
from torch import Tensor

from personality_vector.errors import NonFiniteError, RecipeError
from personality_vector.numeric.kernels import is_finite, rounded
from personality_vector.numeric.random import uniform

Rounding = Literal["nearest", "stochastic"]


@dataclass(frozen=True, slots=True)
class Cast:
    """The one rounding of a tensor.

    Attributes:
        dtype: Any floating dtype.
        rounding: ``nearest`` (ties to even) or ``stochastic``: up or down with the probability
            that makes the expectation exact. Only bfloat16 has the latter.
        key: Of the random stream of the tensor.
    """

    dtype: torch.dtype
    rounding: Rounding = "nearest"
    key: int = 0

    def rounded(
        self, values: Float64[Tensor, " entries"], start: int = 0
    ) -> Float[Tensor, " entries"]:
        """Return a run of entries of the tensor, of which ``start`` is the first, rounded.

        Raises:
            NonFiniteError: A finite value does not fit the dtype.
            RecipeError: Stochastic rounding to another dtype than bfloat16.
        """
        if self.rounding == "nearest":
            near = rounded(values, self.dtype)
        else:
            require_stochastic(self.dtype)
            near = _stochastic(values, self.key, start)
        require_fit(near, lambda: values)
        return near

    def copied(self, stored: Shaped[Tensor, " entries"], start: int = 0) -> Tensor:
        """Return entries that nothing is added to: as they are, unless they have another dtype."""
        # Adding a zero makes -0.0 one, as in any other sum.
        return stored if stored.dtype == self.dtype else self.rounded(stored.double() + 0.0, start)


class Squares(NamedTuple):
    """Inner products over some entries: base with itself, change with itself and as written."""

    base: float = 0.0
    change: float = 0.0
    along: float = 0.0

    @classmethod
    def total(cls, parts: Sequence["Squares"]) -> "Squares":
        """Return the sums over the parts of a tensor, rounded once."""
        return cls(*map(math.fsum, zip(*parts, strict=True)))

    def plus(self, other: "Squares") -> "Squares":
        """Return the sums over both."""
        return Squares(*(one + more for one, more in zip(self, other, strict=True)))

    @property
    def share(self) -> float | None:
        """Projection of the written change on the ideal change; ``None`` if nothing changes.

        It is 1 where nothing was lost. bfloat16 keeps 8 bits: an edit smaller than half a step of
        the weight is rounded away, so that a nominal alpha of 0.1 can act as 0.03.
        """
        return self.along / self.change if self.change else None


def require_fit(
    written: Float[Tensor, " entries"], values: Callable[[], Float64[Tensor, " entries"]]
) -> None:
    """Check that numbers still are numbers after rounding.

    Raises:
        NonFiniteError: One of ``values`` does not fit the dtype of ``written``.
    """
    if is_finite(written):
        return
    largest = float(values().abs().max())
    fits = largest <= torch.finfo(torch.float32).max and written.dtype != torch.float32
    remedy = "write output.dtype: float32" if fits else "lower alpha"
    raise NonFiniteError(f"{largest:.3g} does not fit {written.dtype}; {remedy}")


def require_stochastic(dtype: torch.dtype) -> None:
    """Raise :class:`RecipeError` for a dtype that has no stochastic rounding."""
    if dtype != torch.bfloat16:
        raise RecipeError(f"rounding: stochastic is for bfloat16 outputs, this one is {dtype}")


def _stochastic(values: Tensor, key: int, start: int) -> Tensor:
    # bfloat16 is the upper half of float32: adding 16 random bits below carries with the right
    # probability, also for negative numbers, whose magnitude is what the bits hold.
    noise = uniform(key, start, values.numel(), values.device) * (1 << 16)
    bits = values.float().view(torch.int32) + noise.int()
    return (bits & ~0xFFFF).view(torch.float32).bfloat16()
