"""How replies are drawn, as recipes say it."""

from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from personality_vector.recipes.schema import Real, Recipe, Whole

if TYPE_CHECKING:
    from personality_vector.subject.generation import Sampling


class GenerationSpec(Recipe):
    """How answers are drawn; temperature 0.6 and 5 samples are those of Personality Vector."""

    max_new_tokens: Whole = Field(default=64, ge=1)
    temperature: Real = Field(default=0.6, ge=0)
    top_p: Real = Field(default=1.0, gt=0, le=1)
    batch_size: Whole = Field(default=32, ge=1)
    samples: Whole = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _no_copies(self) -> "GenerationSpec":
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"{self.samples} samples at temperature 0 are copies of one reply; "
                "ask for 1 sample or a temperature above 0"
            )
        return self

    def sampling(self) -> "Sampling":
        """Return how one sample is drawn."""
        from personality_vector.subject.generation import Sampling

        return Sampling(self.max_new_tokens, self.temperature, self.top_p, self.batch_size)
