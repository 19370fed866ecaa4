"""A delta in the live weights and a steering vector in the activations, at one strength."""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from personality_vector.interventions.activations import ActivationSteering
from personality_vector.interventions.spec import Usual
from personality_vector.interventions.weights import WeightEdit
from personality_vector.subject.identity import digest_of

if TYPE_CHECKING:
    from collections.abc import Generator

    from personality_vector.checkpoint import Checkpoint
    from personality_vector.steering.hybrid import Hybrid
    from personality_vector.subject.subject import Subject


@dataclass(frozen=True, slots=True)
class HybridEdit(Usual):
    """``strength * (delta + vector)``: the delta in the weights, the vector by hooks.

    It is the model whose weights hold the delta, and whose MLPs hold the vector as a bias of
    their last linear map.

    Attributes:
        hybrid: ``delta + vector``, of this very base.
        label: Defaults to that of the hybrid.
    """

    hybrid: "Hybrid"
    label: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.hybrid.label)

    def identity(self) -> str:
        """Return the digest of both parts, and of every file that the delta reads."""
        weights, steering = self._parts
        return digest_of(type(self).__name__, weights.identity(), steering.identity())

    def check(self, base: "Checkpoint") -> None:
        """Refuse another base than that of the two, and one that has no place for the vector.

        Raises:
            ModelError: No weight of the architecture can hold the vector, or there is no such
                layer.
            BaseMismatchError: One of the two is of another model.
            TensorMismatchError: The delta has a tensor that the base has not, or has otherwise.
        """
        from personality_vector.steering.bake import route_for
        from personality_vector.steering.bake.base import read_config

        for part in self._parts:
            part.check(base)
        route_for(read_config(base))

    @contextmanager
    def applied(self, subject: "Subject", strength: float) -> "Generator[Subject]":
        """Edit the weights in place, steer by hooks, and take both back.

        Raises:
            ModelError: No weight of the architecture can hold the vector.
            PersonalityVectorError: As :class:`WeightEdit` and :class:`ActivationSteering`.
        """
        from personality_vector.steering.bake import route_for

        route_for(subject.model.config)
        weights, steering = self._parts
        with weights.applied(subject, strength) as inner, steering.applied(inner, strength) as both:
            yield both

    @property
    def _parts(self) -> tuple[WeightEdit, ActivationSteering]:
        vector = self.hybrid.vector
        steering = ActivationSteering(vector, vector.layers, self.label)
        return WeightEdit(self.hybrid.delta, self.label), steering
