"""Ratings from 0 to 100 of how much of a persona a reply shows, and of its coherence."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from personality_vector.data.personas import Persona
from personality_vector.errors import DataError, NonFiniteError

LEAST_MASS = 0.25
"""Share of the probability that must lie on numbers, as in the code of persona vectors."""

_HIGHEST = 100.0


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and what the model replied, without the system prompt: a judge must not see it."""

    question: str
    reply: str


@dataclass(frozen=True, slots=True)
class Rating:
    """What a judge says of one reply.

    Attributes:
        trait: In [0, 100]: 100 is the persona's description, 0 its opposite or no sign of it.
            ``None`` for *unscored*.
        coherence: In [0, 100], likewise.
        reason: Why something is unscored; otherwise "".

    Raises:
        NonFiniteError: A rating is NaN or infinite.
        DataError: A rating is off the scale, or is missing without a reason.
    """

    trait: float | None
    coherence: float | None
    reason: str = ""

    def __post_init__(self) -> None:
        for value in (self.trait, self.coherence):
            if value is None:
                if not self.reason:
                    raise DataError("an unscored reply needs a reason")
            elif not math.isfinite(value):
                raise NonFiniteError(f"a judge returned {value}")
            elif not 0.0 <= value <= _HIGHEST:
                raise DataError(f"a rating must be in [0, {_HIGHEST:g}], got {value}")

    @property
    def is_scored(self) -> bool:
        """Whether there are both ratings."""
        return self.trait is not None and self.coherence is not None


@runtime_checkable
class Rater(Protocol):
    """Rates replies for a persona, in order; what it cannot rate is unscored, with the reason."""

    @property
    def label(self) -> str:
        """What judges, for the record of a vector."""

    def __call__(self, persona: Persona, exchanges: Sequence[Exchange], /) -> list[Rating]:
        """Return one rating for each exchange."""


def expected_number(probabilities: Mapping[str, float], highest: int) -> float | None:
    """Return the mean of the whole numbers 0 to ``highest`` among likely tokens, or ``None``.

    ``sum(i p_i) / sum(p_i)``; a token counts if, apart from white space around it, it is the usual
    decimal form of such a number. ``None`` if all of them together have less than a quarter of the
    probability.

    Args:
        probabilities: Token to probability; the rest of the vocabulary may be missing.
        highest: The largest number that counts.

    Source:
        Persona vectors, Chen et al. 2025, arXiv:2507.21509, with ``highest`` = 100.
    """
    numbers = {str(number): number for number in range(highest + 1)}
    weights = [(numbers.get(token.strip()), p) for token, p in probabilities.items()]
    found = [(number, p) for number, p in weights if number is not None]
    mass = math.fsum(p for _, p in found)
    if mass < LEAST_MASS:
        return None
    mean = math.fsum(number * p for number, p in found) / mass
    return min(mean, float(highest))  # 100 * p / p can be the next number above 100


def rating(trait: float | None, coherence: float | None) -> Rating:
    """Return a rating of two expectations on the scale 0-100, saying which one is not a number."""
    missing = [
        name for name, value in (("trait", trait), ("coherence", coherence)) if value is None
    ]
    reason = f"the judge gave no number for {' and '.join(missing)}" if missing else ""
    return Rating(trait, coherence, reason)
