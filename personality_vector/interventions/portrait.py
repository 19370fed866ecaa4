"""A personality by description: a paragraph that tells the model who it is."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from personality_vector.errors import TraitError, some
from personality_vector.interventions.portraits import PORTRAITS
from personality_vector.interventions.spec import InterventionSpec
from personality_vector.interventions.system_message import SystemMessage
from personality_vector.recipes.fields import PoleField
from personality_vector.traits import Pole

if TYPE_CHECKING:
    from personality_vector.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Portrait(SystemMessage):
    """A system message that describes a person of one pole, as if to their face.

    Strength 1 is the portrait of the pole, -1 that of the opposite pole, 0 none.

    Attributes:
        pole: One of the ten of the Big Five.
        label: Defaults to the pole.

    Raises:
        TraitError: The pole has no portrait.

    Source:
        The form is that of P2, Jiang et al. 2023, arXiv:2206.07550: a second-person description
        that touches on six facets of the trait. Deviation: our own texts, fixed, where they let
        a model write them from key words; none holds the name of its trait.
    """

    pole: Pole
    label: str = ""
    steps: ClassVar[tuple[float, ...]] = (-1.0, 0.0, 1.0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or f"portrait {self.pole}")
        if self.pole not in PORTRAITS:
            raise TraitError(
                f"{self.pole} has no portrait; there is one for each pole of "
                f"{some({pole.trait for pole in PORTRAITS}, 5)}"
            )

    def text_at(self, step: int) -> str:
        """Return the portrait of the pole, or of its opposite below 0."""
        return PORTRAITS[self.pole if step > 0 else self.pole.opposite]


class PortraitSpec(InterventionSpec):
    """``portrait`` names the pole that is described."""

    portrait: PoleField

    def read(self, base: "Checkpoint") -> Portrait:  # noqa: ARG002
        """Return the portrait."""
        return Portrait(self.portrait, self.label)
