"""Which pairs of replies are kept, and how many each rule drops."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from personality_vector.elicitation.recipe import ThresholdSpec
from personality_vector.elicitation.rollouts import Pair, Rollout, paired
from personality_vector.errors import DataError

RULES: tuple[str, ...] = ("empty", "unscored", "positive_trait", "negative_trait", "coherence")
"""Why a pair is dropped: the rules in their order, of which the first that applies counts."""

_HIGH_MEDIAN = 70.0  # BILLY: above this median the negatives show the trait themselves
_POSITIVE_FLOOR = 80.0  # BILLY: the rating that positives must then reach


@dataclass(frozen=True, slots=True)
class Cut:
    """Thresholds on ratings from 0 to 100.

    Attributes:
        positive: Lowest trait rating of a positive reply to keep.
        negative: A negative reply is kept below this trait rating.
        coherence: Lowest coherence of a reply to keep.
        including: Whether a negative reply may also equal ``negative``.
    """

    positive: float
    negative: float
    coherence: float
    including: bool = False

    @classmethod
    def of(cls, spec: ThresholdSpec, pairs: Sequence[Pair]) -> "Cut":
        """Return the thresholds of ``spec``, which may depend on the ratings of ``pairs``.

        Medians are over the rated replies of a side.

        Source:
            Fixed: persona vectors, Chen et al. 2025, arXiv:2507.21509, where ``trait`` and
            ``coherence`` are 50. Adaptive: BILLY, Pai et al. 2025, arXiv:2510.10157: with
            ``m+``, ``m-`` the medians of the sides, if ``m- > 70`` keep positives
            ``>= max(m+, 80)`` and negatives ``<= m-``; else positives ``>= max(m+, 50)`` and
            negatives ``<= min(m-, 50)``. Deviation: replies stay paired; BILLY filters each side
            alone.
        """
        sides = [[pair.positive.trait for pair in pairs], [pair.negative.trait for pair in pairs]]
        rated = [[value for value in side if value is not None] for side in sides]
        if not spec.adaptive or not all(rated):
            return cls(spec.trait, spec.trait, spec.coherence)
        upper, lower = map(statistics.median, rated)
        if lower > _HIGH_MEDIAN:
            return cls(max(upper, _POSITIVE_FLOOR), lower, spec.coherence, including=True)
        return cls(max(upper, spec.trait), min(lower, spec.trait), spec.coherence, including=True)

    def rule_against(self, pair: Pair) -> str:
        """Return the first of ``RULES`` that drops ``pair``, or ""."""
        (positive, one), (negative, other) = ((row.trait, row.coherence) for row in pair)
        if positive is None or negative is None or one is None or other is None:
            return "unscored"
        if positive < self.positive:
            return "positive_trait"
        if negative > self.negative or (negative == self.negative and not self.including):
            return "negative_trait"
        return "coherence" if min(one, other) < self.coherence else ""


@dataclass(frozen=True, slots=True)
class FilterReport:
    """How many pairs there were, and why some were dropped.

    Attributes:
        pairs: Number of all pairs.
        dropped: Rule to the number of pairs that it dropped.
        cut: The thresholds; ``None`` if nobody judged.
    """

    pairs: int
    dropped: Mapping[str, int]
    cut: Cut | None

    @property
    def kept(self) -> int:
        """Number of pairs that were kept."""
        return self.pairs - sum(self.dropped.values())

    def __str__(self) -> str:
        dropped = ", ".join(f"{count} by {rule}" for rule, count in self.dropped.items() if count)
        return f"{self.kept} of {self.pairs} pairs kept; dropped: {dropped or 'none'}"


def filtered(
    rollouts: Sequence[Rollout], thresholds: ThresholdSpec | None
) -> tuple[list[Rollout], FilterReport]:
    """Return every rollout with ``kept`` and ``rule``, pair by pair, and the report.

    Args:
        rollouts: Both sides in any order.
        thresholds: ``None`` keeps every pair of replies that are not empty, rated or not.

    Raises:
        DataError: The replies do not pair up.
    """
    pairs = paired(rollouts)
    cut = None if thresholds is None else Cut.of(thresholds, pairs)
    rules = [_rule(pair, cut) for pair in pairs]
    marked = [
        row.model_copy(update={"kept": not rule, "rule": rule})
        for pair, rule in zip(pairs, rules, strict=True)
        for row in pair
    ]
    return marked, FilterReport(len(pairs), {rule: rules.count(rule) for rule in RULES}, cut)


def require_kept(report: FilterReport, label: str) -> None:
    """Check that at least one pair was kept.

    Raises:
        DataError: None was; the message says how many each rule dropped.
    """
    if not report.kept:
        cut = report.cut
        limits = (
            f" (thresholds: positive trait from {cut.positive:g}, negative trait "
            f"{'up to' if cut.including else 'below'} {cut.negative:g}, "
            f"coherence from {cut.coherence:g})"
            if cut
            else ""
        )
        raise DataError(
            f"{label}: no pair is left to make a vector from: {report}{limits}; "
            "change the instructions, the thresholds or the judge"
        )


def _rule(pair: Pair, cut: Cut | None) -> str:
    if not all(row.reply.strip() for row in pair):
        return "empty"
    return "" if cut is None else cut.rule_against(pair)
