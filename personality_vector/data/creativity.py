"""Pairs of a creative prompt and its uncreative twin, and their split into three parts.

Directions are made from ``train``, a layer is chosen on ``validation``, and ``test`` is reported.
"""

from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from personality_vector.data.personas import Instrument, Item
from personality_vector.data.rows import read_rows
from personality_vector.data.statements import normalised, part_of
from personality_vector.errors import DataError
from personality_vector.recipes.schema import Recipe, Words

Split = Literal["train", "validation", "test"]
"""What learns from a pair, chooses with it, or reports it."""

SPLITS: tuple[Split, ...] = get_args(Split)
FEWEST = 2
"""Pairs that each part needs."""


class CreativityPair(Recipe):
    """A prompt that asks for something creative, and its uncreative counterpart.

    Without ``part``, a hash of the creative prompt decides: half of them are ``train``, a quarter
    ``validation`` and a quarter ``test``, whatever else is in the file.
    """

    creative: Words
    uncreative: Words
    part: Annotated[Split | None, Field(exclude_if=lambda value: value is None)] = None

    @model_validator(mode="after")
    def _differ(self) -> "CreativityPair":
        if normalised(self.creative) == normalised(self.uncreative):
            raise ValueError("creative and uncreative are the same prompt")
        return self

    @property
    def split(self) -> Split:
        """The part that it belongs to."""
        if self.part is not None:
            return self.part
        if part_of(self.creative, 0.25) == "held_out":
            return "test"
        return "validation" if part_of(self.creative, 0.5) == "held_out" else "train"


def read_creativity_pairs(file: Path, part: Split | None = None) -> list[CreativityPair]:
    """Return the pairs of a JSONL file: rows ``{creative, uncreative}``, in file order.

    Args:
        file: Each row may name its ``part``.
        part: Only this part; all pairs if ``None``.

    Raises:
        DataError: The file cannot be read, has no pair, a line is not a pair (named by number), or
            a part is asked for and one of the three has fewer than two pairs.
    """
    pairs = list(read_rows(file, CreativityPair).values())
    if not pairs:
        raise DataError(f"{file}: has no pair of a creative and an uncreative prompt")
    if part is None:
        return pairs
    found = {each: [pair for pair in pairs if pair.split == each] for each in SPLITS}
    if min(map(len, found.values())) < FEWEST:
        counts = ", ".join(f"{len(own)} {each}" for each, own in found.items())
        raise DataError(
            f"{file}: its pairs are {counts}, and each part needs {FEWEST}; add pairs, or write "
            f'"part": "{min(found, key=lambda each: len(found[each]))}" into some of its rows'
        )
    return found[part]


def instrument_of_pairs(file: Path) -> Instrument:
    """Return the creative prompts of the test part of a file of pairs as an instrument.

    Raises:
        DataError: As in :func:`read_creativity_pairs`.
    """
    items = tuple(
        Item(id=f"p{number:02}", text=pair.creative)
        for number, pair in enumerate(read_creativity_pairs(file, "test"), start=1)
    )
    return Instrument(name="creativity", version="1", items=items)
