"""How replies are drawn, and the keys that set it in a recipe."""

from dataclasses import dataclass

from pydantic import Field, model_validator

from personality_vector.recipes.schema import Real, Recipe, Whole


@dataclass(frozen=True, slots=True)
class Sampling:
    """How replies are drawn.

    Attributes:
        max_new_tokens: Longest reply, in tokens.
        temperature: 0 is greedy; Personality Vector samples at 0.6.
        top_p: Probability mass of the nucleus that tokens are drawn from.
        batch_size: Chats generated at once; each batch has its own random numbers.
        repetition_penalty: Divides the logits of tokens that have occurred; 1 changes nothing.
        no_repeat_ngram: Length of the token sequences that may not occur twice; 0 for no limit.
    """

    max_new_tokens: int = 64
    temperature: float = 0.6
    top_p: float = 1.0
    batch_size: int = 32
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0


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
                f"{self.samples} samples at temperature 0 would all be the same reply; "
                "use 1 sample or a temperature above 0"
            )
        return self

    def sampling(self) -> Sampling:
        """Return how one sample is drawn."""
        return Sampling(self.max_new_tokens, self.temperature, self.top_p, self.batch_size)
