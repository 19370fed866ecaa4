"""Traits, levels and poles: the terms in which a personality is measured."""

import re
from dataclasses import dataclass
from typing import Literal

from personality_vector.errors import TraitError

Trait = str
"""A dimension that is measured: one of the Big Five, or any lower-case name like ``creativity``."""

Level = Literal["high", "low"]
"""One end of a trait."""

BIG_FIVE: tuple[Trait, ...] = (
    "openness",
    "conscientiousness",
    "extraversion",
    "agreeableness",
    "neuroticism",
)

_POLE = re.compile(r"([a-z][a-z0-9_-]*):(high|low)")


@dataclass(frozen=True, slots=True, order=True)
class Pole:
    """One end of a trait, written ``extraversion:high``.

    >>> Pole.parse("extraversion:high").opposite
    Pole(trait='extraversion', level='low')
    """

    trait: Trait
    level: Level

    @classmethod
    def parse(cls, text: str) -> "Pole":
        """Read ``trait:level``.

        Raises:
            TraitError: ``text`` has another form.
        """
        match = _POLE.fullmatch(text)
        if match is None:
            raise TraitError(
                f"{text!r} is not a pole: write trait:high or trait:low, such as extraversion:high"
            )
        return cls(match[1], "high" if match[2] == "high" else "low")

    @property
    def opposite(self) -> "Pole":
        """The other end of the same trait."""
        return Pole(self.trait, "low" if self.level == "high" else "high")

    @property
    def sign(self) -> int:
        """``+1`` for the high end, ``-1`` for the low end."""
        return 1 if self.level == "high" else -1

    def __str__(self) -> str:
        return f"{self.trait}:{self.level}"


BIG_FIVE_POLES: tuple[Pole, ...] = tuple(
    Pole(trait, level) for trait in BIG_FIVE for level in ("high", "low")
)
