"""A personality by description: a paragraph that tells the model who it is."""

from dataclasses import dataclass

from personality_vector.errors import TraitError, some
from personality_vector.interventions.portraits import PORTRAITS
from personality_vector.interventions.system_prompt import SystemPrompt, require_step
from personality_vector.traits import Pole


@dataclass(frozen=True, slots=True)
class Portrait(SystemPrompt):
    """A system prompt that describes a person of one pole, as if to their face.

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or f"portrait {self.pole}")
        if self.pole not in PORTRAITS:
            raise TraitError(
                f"{self.pole} has no portrait; there is one for each pole of "
                f"{some({pole.trait for pole in PORTRAITS}, 5)}"
            )

    def sentence(self, strength: float) -> str:
        """Return the portrait of a strength in {-1, 0, 1}; "" at 0.

        Raises:
            RecipeError: The strength is another number.
            NonFiniteError: It is NaN or infinite.
        """
        require_step(self.label, strength, (-1, 0, 1))
        if strength == 0:
            return ""
        return PORTRAITS[self.pole if strength > 0 else self.pole.opposite]
