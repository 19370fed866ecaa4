"""Scores taken together: the unscored are counted, never imputed."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Summary:
    """Scores for one rubric taken together.

    Attributes:
        mean: Mean of the scored values, on the judge's scale; ``None`` if nothing is scored.
        sd: Sample standard deviation, divisor ``n - 1``; ``None`` below two values. The code of
            Personality Vector divides by ``n``.
        n: Number of scored answers.
        unscored: Number of answers without a value.
    """

    mean: float | None
    sd: float | None
    n: int
    unscored: int

    @property
    def standard_error(self) -> float | None:
        """``sd / sqrt(n)``, as if answers were independent; samples of one item are not."""
        return None if self.sd is None else self.sd / math.sqrt(self.n)


def summarise(values: Iterable[float | None]) -> Summary:
    """Return the mean and spread of what is scored, and how much is not."""
    found = list(values)
    scored = [value for value in found if value is not None]
    return Summary(
        mean=statistics.fmean(scored) if scored else None,
        sd=statistics.stdev(scored) if len(scored) > 1 else None,
        n=len(scored),
        unscored=len(found) - len(scored),
    )
