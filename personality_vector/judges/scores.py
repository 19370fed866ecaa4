"""Scores and their summary: unscored is a value, counted and never imputed."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from personality_vector.errors import DataError, NonFiniteError

LOWEST, HIGHEST = 1.0, 5.0
"""Ends of the rating scale; 3 is neutral."""


@dataclass(frozen=True, slots=True)
class Score:
    """A rating of one response for one trait.

    Attributes:
        value: In [1, 5], or ``None`` for *unscored*.
        raw: What the judge read or said, unchanged.
        reason: Why there is no value, or how the judge came to it.

    Raises:
        NonFiniteError: ``value`` is NaN or infinite.
        DataError: ``value`` is off the scale, or missing without a reason.
    """

    value: float | None
    raw: str
    reason: str = ""

    def __post_init__(self) -> None:
        if self.value is None:
            if not self.reason:
                raise DataError("an unscored response needs a reason")
        elif not math.isfinite(self.value):
            raise NonFiniteError(f"a judge returned {self.value} for {self.raw[:60]!r}")
        elif not LOWEST <= self.value <= HIGHEST:
            raise DataError(f"a score must be in [{LOWEST:g}, {HIGHEST:g}], got {self.value}")


@dataclass(frozen=True, slots=True)
class Summary:
    """Scores of one trait taken together.

    Attributes:
        mean: Mean of the scored values on the 1-5 scale; ``None`` if nothing is scored.
        sd: Sample standard deviation, divisor ``n - 1``; ``None`` below two values. The code of
            Personality Vector divides by ``n``.
        n: Number of scored responses.
        unscored: Number of responses without a value.
    """

    mean: float | None
    sd: float | None
    n: int
    unscored: int

    @property
    def standard_error(self) -> float | None:
        """``sd / sqrt(n)``, as if responses were independent; samples of one item are not."""
        return None if self.sd is None else self.sd / math.sqrt(self.n)


def summarise(scores: Iterable[Score]) -> Summary:
    """Return the mean and spread of what is scored, and how much is not."""
    found = list(scores)
    values = [score.value for score in found if score.value is not None]
    return Summary(
        mean=statistics.fmean(values) if values else None,
        sd=statistics.stdev(values) if len(values) > 1 else None,
        n=len(values),
        unscored=len(found) - len(values),
    )
