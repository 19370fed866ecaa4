"""Which rows of a data file are read, and how."""

from typing import Annotated, Literal

from pydantic import Field

from personality_vector.recipes.fields import PoleField, Real, Whole, Words
from personality_vector.recipes.paths import LocalPath
from personality_vector.recipes.reading import Recipe
from personality_vector.traits import Pole


class DataSpec(Recipe):
    """Texts that become chats.

    ``statements``: rows ``{trait, level, statement}``; each becomes the answer to one of
    ``questions``. ``big5chat``: rows ``{trait, level, train_input, train_output}``.
    ``chats``: rows ``{prompt, completion}`` of chat messages, as TRL takes them.
    """

    source: LocalPath
    format: Literal["statements", "big5chat", "chats"] = "statements"
    pole: PoleField | None = None
    part: Literal["train", "held_out", "all"] = "train"
    held_out: Real = Field(default=0.2, ge=0.0, lt=1.0)
    limit: Whole | None = Field(default=None, ge=1)
    questions: Annotated[tuple[Words, ...], Field(min_length=1)] = ("What kind of person are you?",)
    system: str | None = None

    def narrowed(self, pole: Pole) -> "DataSpec":
        """Return this data for ``pole`` alone, unless it names one or its rows have none."""
        if self.pole is not None or self.format == "chats":
            return self
        return self.model_copy(update={"pole": pole})
