"""Hybrids: a delta of the weights and a steering vector, added and scaled as one."""

from dataclasses import dataclass
from typing import Any

from personality_vector.delta import Delta
from personality_vector.errors import BaseMismatchError
from personality_vector.steering.vector import SteeringVector


@dataclass(frozen=True, slots=True, eq=False)
class Hybrid:
    """``delta + vector``: a change of the weights, and one of the output of some blocks.

    The vector stands for a bias of the last linear map of each of its layers' MLPs, so the sum is
    a point in weight space if the architecture has a place for such a bias. A vector cannot tell
    whether it has, so :func:`~.bake.route_for` asks the base.

    Attributes:
        delta: The change of the weights.
        vector: Added at every layer that it has (:meth:`SteeringVector.at` chooses some), at all
            positions.
        label: Defaults to the labels of both.

    Raises:
        BaseMismatchError: The two are of different models.
    """

    delta: Delta
    vector: SteeringVector
    label: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or f"{self.delta.label} + {self.vector.label}")
        if self.vector.model not in ("", self.delta.base.digest):
            raise BaseMismatchError(
                f"{self.delta.label} is of base {self.delta.base} and {self.vector.label} of model "
                f"{self.vector.model[:12]}; only a delta and a vector of one model can be added"
            )

    def __add__(self, other: Any) -> "Hybrid":
        if isinstance(other, Hybrid):
            return Hybrid(self.delta + other.delta, self.vector + other.vector)
        if isinstance(other, Delta):
            return Hybrid(self.delta + other, self.vector)
        if isinstance(other, SteeringVector):
            return Hybrid(self.delta, self.vector + other)
        return NotImplemented

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self + -other

    def __rsub__(self, other: Any) -> Any:
        return -self + other

    def __mul__(self, factor: float) -> "Hybrid":
        return Hybrid(self.delta * factor, self.vector * factor)

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> "Hybrid":
        return Hybrid(self.delta / divisor, self.vector / divisor)

    def __neg__(self) -> "Hybrid":
        return Hybrid(-self.delta, -self.vector)
