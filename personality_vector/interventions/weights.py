"""A delta added to the live weights, and taken back bit for bit."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

from personality_vector.delta import Delta
from personality_vector.interventions.protocol import require_finite
from personality_vector.merging.live import live_edit
from personality_vector.merging.rounding import Realised
from personality_vector.subject.chat import ChatEdit, identity


@dataclass(frozen=True, slots=True)
class WeightEdit:
    """``base + strength * delta`` in the live parameters; strength is alpha.

    Attributes:
        delta: Of this very base: the caller checks its fingerprint
            (:func:`personality_vector.delta.open_delta`), which a model in memory has not.
        label: Defaults to that of the delta.

    Source:
        Task arithmetic, Ilharco et al. 2022, arXiv:2212.04089:
        ``theta_new = theta + lambda * tau``.
    """

    delta: Delta
    label: str = ""
    realised: Realised = field(default_factory=Realised, compare=False)
    """Of the last edit: the share of the ideal change that survived the parameters' dtype."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.delta.label)

    @contextmanager
    def applied(self, model: nn.Module, strength: float) -> Generator[ChatEdit]:
        """Edit in place; on exit restore the parameters bit for bit.

        See :func:`personality_vector.merging.live.live_edit`.
        """
        require_finite(self.label, strength)
        with live_edit(model, self.delta, strength) as found:
            self.realised.reset()
            self.realised.add(found.along, found.square)
            yield identity
