"""Rollouts: a model's own answers under the two system prompts of each pair, and which are kept."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from personality_vector.data.personas import Persona
from personality_vector.data.rows import read_rows
from personality_vector.elicitation.recipe import RolloutSpec, ThresholdSpec
from personality_vector.errors import DataError, some
from personality_vector.progress import progress
from personality_vector.recipes.schema import Recipe
from personality_vector.subject import Chat, Score, answered, question
from personality_vector.subject.subject import Subject, sample_seed
from personality_vector.subject.thoughts import said

Side = Literal["positive", "negative"]
SIDES: tuple[Side, ...] = ("positive", "negative")
ROLLOUTS = "rollouts.jsonl"
"""The file beside a vector with every reply that was drawn for it, kept or dropped."""

RULES: tuple[str, ...] = ("empty", "unscored", "positive_trait", "negative_trait", "coherence")
"""Why a pair is dropped: the rules in their order, of which the first that applies counts."""
_UNFINISHED = "unfinished_thought"
"""The rule before them, of models that think: a reply ended inside a thought."""

_HIGH_MEDIAN = 70.0  # BILLY: above this median the negatives show the trait themselves
_POSITIVE_FLOOR = 80.0  # BILLY: the rating that positives must then reach


class Rollout(Recipe):
    """One reply with its ratings and whether it was kept: a line of ``rollouts.jsonl``.

    Attributes:
        id: Shared by the positive and the negative reply of a pair.
        side: Which instruction of the pair the model was under.
        system: The instruction, which is the whole system prompt.
        question: The user's message.
        reply: The reply, without surrounding white space; thoughts stand between think marks.
        trait: The judge's rating in [0, 100]; ``None`` if unscored or not judged.
        coherence: The rating of coherence, likewise.
        reason: Why it is unscored.
        kept: Whether its pair was used for the vector.
        rule: The rule that dropped the pair; "" if none did.
    """

    id: str
    side: Side
    system: str
    question: str
    reply: str
    trait: float | None = Field(default=None, ge=0, le=100)
    coherence: float | None = Field(default=None, ge=0, le=100)
    reason: str = ""
    kept: bool = False
    rule: str = ""

    @property
    def chat(self) -> Chat:
        """The chat as the model read and answered it, without its thoughts."""
        return answered(question(self.question, system=self.system), said(self.reply).answer)

    @property
    def asked(self) -> tuple[str, ...]:
        """Everything that is fixed before the model replies."""
        return (self.id, self.side, self.system, self.question)

    def rated(self, trait: Score, coherence: Score, scale: tuple[float, float]) -> "Rollout":
        """Return it with a judge's scores, moved from its ``scale`` to 0-100."""
        low, high = scale
        percents = {
            name: None if score.value is None else (score.value - low) * (100 / (high - low))
            for name, score in (("trait", trait), ("coherence", coherence))
        }
        reasons = dict.fromkeys(each.reason for each in (trait, coherence) if each.value is None)
        return self.model_copy(update={**percents, "reason": "; ".join(reasons)})

    def unrated(self) -> "Rollout":
        """Return the reply without ratings."""
        return Rollout(**self.model_dump(include={"id", "side", "system", "question", "reply"}))


class Pair(NamedTuple):
    """The two replies with one id."""

    positive: Rollout
    negative: Rollout


def planned(persona: Persona, spec: RolloutSpec, sample: int) -> list[Rollout]:
    """Return the rows that sample ``sample`` asks, without replies: positive side first.

    The id ``pair2-question14-sample0`` counts from 0 and depends on nothing else.
    """
    pairs = list(enumerate(persona.instructions))[: spec.pairs]
    questions = list(enumerate(persona.questions.extract))[: spec.questions]
    return [
        Rollout(
            id=f"pair{i}-question{j}-sample{sample}",
            side=side,
            system=pair.positive if side == "positive" else pair.negative,
            question=asked,
            reply="",
        )
        for side in SIDES
        for i, pair in pairs
        for j, asked in questions
    ]


def draw(subject: Subject, persona: Persona, spec: RolloutSpec, seed: int) -> list[Rollout]:
    """Return the subject's replies, sample by sample.

    The noise is fixed by ``(seed, sample)`` and the place in the batch, and is the same on both
    sides: the replies of a pair differ by their instruction alone. The first samples of a longer
    run are those of a shorter one.

    Raises:
        DataError: The chat template refuses a system prompt.
        NonFiniteError: The model predicts NaN or infinity.
    """
    asked = replace(subject, sampling=spec.sampling())
    rollouts: list[Rollout] = []
    for sample in progress(range(spec.samples), "rollouts"):
        for side in SIDES:
            rows = [row for row in planned(persona, spec, sample) if row.side == side]
            replies = asked.replies(
                [question(row.question, system=row.system) for row in rows],
                sample_seed(seed, sample),
            )
            rollouts += [
                row.model_copy(update={"reply": reply.raw})
                for row, reply in zip(rows, replies, strict=True)
            ]
    return rollouts


def paired(rollouts: Iterable[Rollout]) -> list[Pair]:
    """Return the pairs by id, in the order of the positive replies.

    Raises:
        DataError: A reply is missing its pair, or occurs twice.
    """
    sides: dict[Side, dict[str, Rollout]] = {side: {} for side in SIDES}
    for rollout in rollouts:
        if rollout.id in sides[rollout.side]:
            raise DataError(f"two {rollout.side} replies have the id {rollout.id}")
        sides[rollout.side][rollout.id] = rollout
    lonely = sides["positive"].keys() ^ sides["negative"].keys()
    if lonely:
        raise DataError(f"only one side has the replies {some(lonely)}; a pair needs both")
    return [Pair(row, sides["negative"][row.id]) for row in sides["positive"].values()]


def to_jsonl(rollouts: Iterable[Rollout]) -> str:
    """Return the rollouts as text, one JSON object a line."""
    return "".join(
        json.dumps(rollout.model_dump(), ensure_ascii=False) + "\n" for rollout in rollouts
    )


def reused(path: Path, persona: Persona, spec: RolloutSpec) -> list[Rollout]:
    """Return the rollouts of an earlier run that asked exactly what this one would.

    Raises:
        DataError: The file cannot be read, or its replies answer something else.
    """
    found = {row.asked[:2]: row for row in read_rows(path, Rollout).values()}
    wanted = [row for sample in range(spec.samples) for row in planned(persona, spec, sample)]
    for row in wanted:
        earlier = found.get(row.asked[:2])
        if earlier is None:
            raise DataError(
                f"{path}: lacks the {row.side} reply {row.id}, which the recipe asks for"
            )
        if earlier.asked != row.asked:
            raise DataError(
                f"{path}: the {row.side} reply {row.id} answers a system prompt "
                "or question other than the persona's"
            )
    return [found[row.asked[:2]] for row in wanted]


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
        rated = [
            [row.trait for row in side if row.trait is not None]
            for side in ([pair.positive for pair in pairs], [pair.negative for pair in pairs])
        ]
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
    known = RULES if _UNFINISHED not in rules else (_UNFINISHED, *RULES)
    return [
        row.model_copy(update={"kept": not rule, "rule": rule})
        for pair, rule in zip(pairs, rules, strict=True)
        for row in pair
    ], FilterReport(len(pairs), {rule: rules.count(rule) for rule in known}, cut)


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
    replies = [said(row.reply) for row in pair]
    if not all(reply.is_finished for reply in replies):
        return _UNFINISHED
    if not all(reply.answer for reply in replies):
        return "empty"
    return "" if cut is None else cut.rule_against(pair)
