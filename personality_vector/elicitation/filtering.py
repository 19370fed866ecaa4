"""Which replies of a persona are kept: those that a judge rates on their own side."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from personality_vector.elicitation.recipe import ThresholdSpec
from personality_vector.elicitation.rollouts import SIDES, Pair, Rollout, paired
from personality_vector.errors import DataError
from personality_vector.subject.thoughts import said

RULES: tuple[str, ...] = ("empty", "unscored", "positive_trait", "negative_trait", "coherence")
"""Why a pair is dropped: the rules in their order, of which the first that applies counts."""
_UNFINISHED, _CUT = "unfinished_thought", "no_whole_sentence"
"""Rules before them: a reply ended inside a thought, or before its first sentence did."""
_RULES = (_UNFINISHED, _CUT, *RULES)
_CURES = {
    _UNFINISHED: "raise rollouts.max_new_tokens",
    _CUT: "raise rollouts.max_new_tokens",
    "empty": "change the model or its chat template, which leave the replies empty",
    "unscored": "choose another judge, or keep what it cannot rate with thresholds.unscored: keep",
    "positive_trait": "make the positive instructions clearer, or lower thresholds.trait",
    "negative_trait": "make the negative instructions clearer, or raise thresholds.trait",
    "coherence": "lower rollouts.temperature or thresholds.coherence",
}
"""What to change where a rule dropped most."""

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
        keeping_unscored: Whether a reply without a rating is kept.
    """

    positive: float
    negative: float
    coherence: float
    including: bool = False
    keeping_unscored: bool = False

    @classmethod
    def of(cls, spec: ThresholdSpec, pairs: Sequence[Pair]) -> "Cut":
        """Return the thresholds of ``spec``, which may depend on the ratings of ``pairs``.

        Medians are over the rated replies of a side.

        Source:
            Fixed: persona vectors, Chen et al. 2025, arXiv:2507.21509, where ``trait`` and
            ``coherence`` are 50. Adaptive: BILLY, Pai et al. 2025, arXiv:2510.10157: with
            ``m+``, ``m-`` the medians of the sides, if ``m- > 70`` keep positives
            ``>= max(m+, 80)`` and negatives ``<= m-``; else positives ``>= max(m+, 50)`` and
            negatives ``<= min(m-, 50)``. Deviation: replies stay paired, unless ``paired`` is
            off; BILLY filters each side alone.
        """
        rated = [
            [row.trait for row in side if row.trait is not None]
            for side in ([pair.positive for pair in pairs], [pair.negative for pair in pairs])
        ]
        keeping = spec.unscored == "keep"
        if not spec.adaptive or not all(rated):
            return cls(spec.trait, spec.trait, spec.coherence, keeping_unscored=keeping)
        upper, lower = map(statistics.median, rated)
        is_high = lower > _HIGH_MEDIAN
        floor = _POSITIVE_FLOOR if is_high else spec.trait
        ceiling = lower if is_high else min(lower, spec.trait)
        top = max(upper, floor)
        return cls(top, ceiling, spec.coherence, including=True, keeping_unscored=keeping)

    def rule_against(self, row: Rollout) -> str:
        """Return the first of ``RULES`` that drops a reply, or ""."""
        if row.trait is None or row.coherence is None:
            return "" if self.keeping_unscored else "unscored"
        if row.side == "positive" and row.trait < self.positive:
            return "positive_trait"
        if row.side == "negative" and not (
            row.trait < self.negative or (self.including and row.trait == self.negative)
        ):
            return "negative_trait"
        return "coherence" if row.coherence < self.coherence else ""


@dataclass(frozen=True, slots=True)
class FilterReport:
    """How many pairs there were, or replies if each stands alone, and why some were dropped.

    Attributes:
        total: Number of all of them.
        dropped: Rule to the number that it dropped.
        cut: The thresholds; ``None`` if nobody judged.
        of: What is counted: ``pairs`` or ``replies``.
    """

    total: int
    dropped: Mapping[str, int]
    cut: Cut | None
    of: Literal["pairs", "replies"] = "pairs"

    @property
    def kept(self) -> int:
        """Number of those that were kept."""
        return self.total - sum(self.dropped.values())

    def __str__(self) -> str:
        dropped = ", ".join(f"{count} by {rule}" for rule, count in self.dropped.items() if count)
        return f"{self.kept} of {self.total} {self.of} kept; dropped: {dropped or 'none'}"


def filtered(
    rollouts: Sequence[Rollout],
    thresholds: ThresholdSpec,
    *,
    judged: bool = True,
    by_sentence: bool = False,
) -> tuple[list[Rollout], FilterReport]:
    """Return every rollout with ``kept`` and ``rule``, pair by pair, and the report.

    Args:
        rollouts: Both sides in any order.
        thresholds: What a reply must reach, and whether it stands or falls with its pair.
        judged: Whether the replies are rated; otherwise all that are not empty are kept.
        by_sentence: Whether a reply that was cut off needs a whole sentence.

    Raises:
        DataError: The replies do not pair up.
    """
    pairs = paired(rollouts)
    cut = Cut.of(thresholds, pairs) if judged else None
    rules = [[_rule(row, cut, by_sentence=by_sentence) for row in pair] for pair in pairs]
    if thresholds.paired:  # the first rule that either reply breaks
        rules = [[min(filter(None, both), key=_RULES.index, default="")] * 2 for both in rules]
    one_each = [rule for both in rules for rule in (both[:1] if thresholds.paired else both)]
    known = [rule for rule in _RULES if rule in RULES or rule in one_each]
    return [
        row.model_copy(update={"kept": not rule, "rule": rule})
        for pair, both in zip(pairs, rules, strict=True)
        for row, rule in zip(pair, both, strict=True)
    ], FilterReport(
        len(one_each),
        {rule: one_each.count(rule) for rule in known},
        cut,
        "pairs" if thresholds.paired else "replies",
    )


def require_kept(report: FilterReport, rollouts: Sequence[Rollout], label: str) -> None:
    """Check that something was kept of both sides.

    Args:
        report: What was kept of all replies.
        rollouts: Those that something learns from.
        label: Name of the persona.

    Raises:
        DataError: Nothing was; the message says how many each rule dropped, and what to change.
    """
    kept = {row.side for row in rollouts if row.kept}
    lacking = next((side for side in SIDES if side not in kept), None)
    if lacking is None:
        return
    cut = report.cut
    limits = (
        f" (thresholds: positive trait from {cut.positive:g}, negative trait "
        f"{'up to' if cut.including else 'below'} {cut.negative:g}, "
        f"coherence from {cut.coherence:g})"
        if cut
        else ""
    )
    what = "pair" if report.of == "pairs" else f"{lacking} reply"
    rules = Counter(row.rule for row in rollouts if row.side == lacking)
    most = max(rules, key=lambda rule: rules[rule], default="empty")
    raise DataError(f"{label}: no {what} is left to learn from: {report}{limits}; {_CURES[most]}")


def _rule(row: Rollout, cut: Cut | None, *, by_sentence: bool) -> str:
    reply = said(row.reply)
    if not reply.is_finished:
        return _UNFINISHED
    if not reply.answer:
        return "empty"
    if by_sentence and not row.sentences:
        return _CUT
    return "" if cut is None else cut.rule_against(row)
