"""The parts of a study (interventions, measures, judges) and the data they exchange.

Any object with these attributes and methods works; nothing has to inherit from them.
"""

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, runtime_checkable

from personality_vector.errors import DataError, NonFiniteError, some
from personality_vector.subject.thoughts import UNFINISHED, Said, said
from personality_vector.traits import Pole

if TYPE_CHECKING:
    from personality_vector.checkpoint import Checkpoint as Checkpoint
    from personality_vector.subject.subject import Subject as Subject
else:  # both import torch, which would delay a refused recipe by seconds
    Checkpoint = Subject = Any

Better = Literal["towards_pole", "low", "high", "none"]
"""Which direction of a number is better."""


class Cell(NamedTuple):
    """Everything that a number depends on, as digests; the key of a measurement."""

    base: str
    intervention: str
    strength: float
    measure: str
    seed: int


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply.

    Attributes:
        text: The answer: the reply without surrounding white space and without thoughts. It is ""
            if the reply ends inside a thought.
        tokens_in: Tokens of the prompt.
        tokens_out: Tokens of the reply, those of thoughts and the end mark included.
        seconds: Its share of the time that its batch took.
        thought: What the model wrote between think marks.
        is_finished: Whether it closed its thoughts.
        is_shared: Whether other points shared its batch, whose time then says little about it.
    """

    text: str
    tokens_in: int
    tokens_out: int
    seconds: float
    thought: str = ""
    is_finished: bool = True
    is_shared: bool = False

    @property
    def raw(self) -> str:
        """The reply with its thoughts, between the marks that :func:`said` knows."""
        return Said(self.text, self.thought, self.is_finished).text


@dataclass(frozen=True, slots=True)
class Rubric:
    """What a judge rates an answer for.

    Attributes:
        trait: The name in tables: a trait, or a persona.
        description: What the upper end of the judge's scale shows.
        opposite: What the lower end shows; without it, no sign of the description.
        note: Anything else a judge should know.
        pole: The upper end, where it is one end of a trait.
    """

    trait: str
    description: str = ""
    opposite: str | None = None
    note: str = ""
    pole: Pole | None = None


class Place(NamedTuple):
    """Where in a study an answer was given, by the names of its recipe."""

    measure: str
    intervention: str
    strength: float
    seed: int


AT_TURN = " at turn "
"""It stands between the identifier of a question and the number of its turn."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said to one item, raw.

    Attributes:
        item: Identifier of the question within its measure; in a conversation it ends in
            ``AT_TURN`` and the number of the turn, from the second on.
        sample: 0-based number of the repetition.
        question: The user's message.
        reply: What the model said, with its thoughts between think marks.
        traits: Names of the rubrics that it is rated for; empty for all.
        tokens_in: Tokens of the prompt.
        tokens_out: Tokens of the reply.
        seconds: Time of the reply.
        base_reply: What the base said to the same item, where it is known.
        place: Where it was given, where it is known.
    """

    item: str
    sample: int
    question: str
    reply: str
    traits: tuple[str, ...] = ()
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    base_reply: str | None = None
    place: Place | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """A rating of one answer, on the judge's scale; ``None`` is *unscored*, with the reason.

    Raises:
        NonFiniteError: ``value`` is NaN or infinite.
        DataError: There is neither a value nor a reason.
    """

    value: float | None
    reason: str = ""

    def __post_init__(self) -> None:
        if self.value is None:
            if not self.reason:
                raise DataError("a score without a value needs a reason")
        elif not math.isfinite(self.value):
            raise NonFiniteError(f"a judge returned {self.value}")


@dataclass(frozen=True, slots=True)
class Reading:
    """One number about a cell.

    Attributes:
        measure: Its name, which is that of the measure or begins with it: ``divergence.p95``.
        value: ``None`` if nothing could be measured.
        trait: What it is about, or "" for a number of no trait.
        low: Lower end of a 95 % interval, where there is one.
        high: Upper end.
        n: Number of observations in ``value``.
        unscored: Observations that gave no value.
        unit: Where it is not that of the measure.
    """

    measure: str
    value: float | None
    trait: str = ""
    low: float | None = None
    high: float | None = None
    n: int = 0
    unscored: int = 0
    unit: str = ""


class Observation(NamedTuple):
    """What was seen of one item; a reading of the same name and trait is the mean over items.

    Attributes:
        measure: Its name, as of a reading.
        trait: Its trait, or "".
        item: What was observed, such as a statement or a task; the same in every cell.
        value: A finite number.
    """

    measure: str
    trait: str
    item: str
    value: float


@dataclass(frozen=True, slots=True)
class Findings:
    """What a measure found in one cell.

    Attributes:
        answers: Judges may rate them at any time.
        readings: Numbers.
        observations: What some of the numbers are means of, so that two cells can be compared item
            by item.
    """

    answers: Sequence[Answer] = ()
    readings: Sequence[Reading] = ()
    observations: Sequence[Observation] = ()


@runtime_checkable
class Intervention(Protocol):
    """A change of a model at some strength, which can be undone.

    ``steps`` are the possible strengths; ``None`` means every real number. At strength 0 the model
    is unchanged.

    One whose strengths can share a batch also has ``by_row(subject, strengths)``. It changes each
    row by the strength that is stated for it (``prompts.strengths_of_rows()``), or by the only one
    of ``strengths``, the list of those that occur. It raises ``RowsError`` for a model in which
    rows cannot differ. With ``is_of_weights`` it rounds nothing, which ``applied`` does in 16 bits.
    """

    @property
    def label(self) -> str:
        """Name in tables and figures."""

    @property
    def steps(self) -> tuple[float, ...] | None:
        """The possible strengths, or ``None`` for all real numbers."""

    def identity(self) -> str:
        """Return a digest of its options and of every file that it reads."""

    def check(self, base: Checkpoint, /) -> None:
        """Refuse a base that does not fit, before a model is loaded."""

    def applied(self, subject: Subject, strength: float, /) -> AbstractContextManager[Subject]:
        """Change the subject for the length of a ``with`` block; yield what is to be asked."""


@runtime_checkable
class Measure(Protocol):
    """A family of numbers; a report can draw them without knowing the measure.

    If judges rate its answers, it also has ``judges`` and ``rubrics``, both sequences.

    One that asks the subject and does not touch its model may say its ``points_per_batch``: how
    many points (strengths, seeds) fill one of its batches. Such points are then measured at once,
    each in a thread of its own, of which only one runs at a time. Where it keeps much of each point
    until :meth:`finish`, ``most_points`` is how many are measured at once at most.
    """

    @property
    def name(self) -> str:
        """Name in tables; the name of each number is the same, or begins with it and a dot."""

    @property
    def unit(self) -> str:
        """Unit of its numbers, such as ``nats per token``."""

    @property
    def scale(self) -> tuple[float, float] | None:
        """The ends of the scale, where there is one."""

    @property
    def better(self) -> Better:
        """Which direction is better."""

    def identity(self) -> str:
        """Return a digest of everything its numbers depend on beside the subject and the seed."""

    def prepare(self, base: Subject, /) -> "Measure":
        """Return it ready for use, after reading from the unedited model what it compares with."""

    def collect(self, subject: Subject, seed: int, /) -> Any:
        """Ask the edited model; the result is passed to :meth:`finish`."""

    def finish(self, base: Subject, collected: Any, /) -> Findings:
        """Return what was found, once the edit is undone."""


@runtime_checkable
class Judge(Protocol):
    """Answers in, scores out; what cannot be rated is unscored, with its reason.

    A judge with ``is_remote`` works in a thread beside the model. It also has ``stop()``,
    ``bill()``, and ``billed_to(folder)``, which returns it for the answers of a run. One with
    ``rates`` rates for these rubrics only, by name. One with ``among(answers)`` is shown all
    answers of a run, each with the names of its rubrics, and returns the judge of that run; where
    it ``compares_all`` of them, it rates when all are there.
    """

    @property
    def name(self) -> str:
        """Name in tables."""

    @property
    def scale(self) -> tuple[float, float]:
        """The ends of its scale; the upper one is what the rubric describes."""

    def identity(self) -> str:
        """Return a digest of everything its scores depend on."""

    def prepare(self, base: Subject, /) -> "Judge":
        """Return it ready for use; ``base`` is the unedited model."""

    def __call__(self, rubric: Rubric, answers: Sequence[Answer], /) -> list[Score]:
        """Return one score for each answer, in order."""


@dataclass(frozen=True, slots=True)
class Quality:
    """How good a judge is, by one number: its accuracy on held-out texts, for example."""

    trait: str
    name: str
    value: float
    n: int = 0


def rated_for(judge: Judge, rubrics: Sequence[Rubric]) -> list[Rubric]:
    """Return what a judge rates answers for, out of what can be rated."""
    only = getattr(judge, "rates", None)
    return [rubric for rubric in rubrics if only is None or rubric.trait in only]


def rated(judge: Judge, rubric: Rubric, answers: Sequence[Answer]) -> list[Score]:
    """Return a judge's scores, one for each answer and all of them on its scale.

    A judge reads answers without thoughts; a reply that ends inside a thought is unscored.

    Without answers, this only gives the judge the chance to refuse the rubric.

    Raises:
        DataError: The judge cannot rate the rubric, or did not return exactly one score on its
            scale for each answer.
    """
    if not rated_for(judge, [rubric]):
        known = some(getattr(judge, "rates", ()))
        raise DataError(f"{judge.name}: rates answers for {known}, and not for {rubric.trait}")
    spoken = [_spoken(answer) for answer in answers]
    asked = [answer for answer in spoken if answer is not None]
    scores = judge(rubric, asked)
    if len(scores) != len(asked):
        raise DataError(f"{judge.name}: returned {len(scores)} scores for {len(asked)} answers")
    low, high = judge.scale
    for score in scores:
        if not isinstance(score, Score):
            raise DataError(f"{judge.name}: returned {type(score).__name__}, not Score")
        if score.value is not None and not low <= score.value <= high:
            raise DataError(
                f"{judge.name}: a score must be in [{low:g}, {high:g}], got {score.value}"
            )
    given = iter(scores)
    return [Score(None, UNFINISHED) if answer is None else next(given) for answer in spoken]


def _spoken(answer: Answer) -> Answer | None:
    """Return an answer without thoughts, or ``None`` if it ends inside one."""
    reply, base_reply = said(answer.reply), answer.base_reply
    if not reply.is_finished:
        return None
    if base_reply is not None:
        base_reply = said(base_reply).answer
    return replace(answer, reply=reply.answer, base_reply=base_reply)
