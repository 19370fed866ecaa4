"""Instruments: versioned sets of questions, each for one trait or for any."""

from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from personality_vector.errors import some
from personality_vector.recipes.reading import read_recipe
from personality_vector.recipes.schema import Recipe
from personality_vector.traits import Trait

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
_Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class Item(Recipe):
    """One question.

    Attributes:
        id: Unique in its instrument.
        text: What the model is asked, as the user's message.
        trait: What the answer is judged for; ``None`` means every trait of the evaluation.
        keyed: ``+1`` if saying yes to what the question describes points to the high end of the
            trait, ``-1`` if to the low end. A judge that reads question and answer ignores it.
    """

    id: _Name
    text: _Text
    trait: Annotated[Trait, StringConstraints(pattern=r"^[a-z][a-z0-9_-]*$")] | None = None
    keyed: Literal[1, -1] = 1


class Instrument(Recipe):
    """A set of items that are asked one by one, each in a new chat, after ``system`` if given."""

    name: _Name
    version: _Text
    system: _Text | None = None
    items: Annotated[tuple[Item, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _unique_ids(self) -> "Instrument":
        counts = Counter(item.id for item in self.items)
        repeated = [name for name, count in counts.items() if count > 1]
        if repeated:
            raise ValueError(f"two items have the same id: {some(repeated)}")
        return self


def read_instrument(path: Path) -> Instrument:
    """Return the instrument in a YAML file.

    Raises:
        RecipeError: The file is missing, not YAML, or not an instrument with unique item ids.
    """
    return read_recipe(path, Instrument)
