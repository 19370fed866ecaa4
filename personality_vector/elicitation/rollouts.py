"""Rollouts: a model's own answers under the two system prompts of each pair."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from personality_vector.data.personas import Persona
from personality_vector.data.rows import read_rows
from personality_vector.elicitation.recipe import RolloutSpec
from personality_vector.errors import DataError, some
from personality_vector.progress import progress
from personality_vector.recipes.schema import Recipe
from personality_vector.subject import Chat, Score, answered, question
from personality_vector.subject.draws import sample_seed
from personality_vector.subject.subject import Subject
from personality_vector.subject.thoughts import said

Side = Literal["positive", "negative"]
SIDES: tuple[Side, ...] = ("positive", "negative")
ROLLOUTS = "rollouts.jsonl"
"""The file beside a vector with every reply that was drawn for it, kept or dropped."""

_QUESTION, _EVALUATION = "question", "evaluation"
_SENTENCE_END = re.compile(r"""[.!?\u2026\u3002]["')\]\u201d\u2019]*(?=\s|$)""")


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
        kept: Whether something learned from it.
        rule: The rule that dropped it, or its pair; "" if none did.
        is_whole: Whether it ended by itself, before ``rollouts.max_new_tokens``.
        drawn_by: Digest of the model and the settings that it was drawn with.
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
    is_whole: bool = True
    drawn_by: str = ""

    @property
    def chat(self) -> Chat:
        """The chat as the model read and answered it, without its thoughts."""
        return answered(question(self.question, system=self.system), said(self.reply).answer)

    @property
    def sentences(self) -> str:
        """The answer; one that was cut off ends with its last whole sentence, or is ""."""
        answer = said(self.reply).answer
        ends = [] if self.is_whole else [found.end() for found in _SENTENCE_END.finditer(answer)]
        return answer if self.is_whole else answer[: max(ends, default=0)].strip()

    @property
    def is_extract(self) -> bool:
        """Whether its question is one for extraction, and not one for evaluation."""
        return f"-{_QUESTION}" in self.id

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
        own = {"id", "side", "system", "question", "reply", "is_whole", "drawn_by"}
        return Rollout(**self.model_dump(include=own))


class Pair(NamedTuple):
    """The two replies with one id."""

    positive: Rollout
    negative: Rollout


class Batch(NamedTuple):
    """What is asked at once: one side of one sample.

    Attributes:
        sample: Its noise is that of this number, the same on both sides.
        rows: The rollouts without their replies.
    """

    sample: int
    rows: list[Rollout]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is asked of a model as a persona and as its opposite.

    Attributes:
        persona: The persona.
        spec: How many of its pairs and questions, how often, and how replies are drawn.
        seed: The noise is fixed by it, the sample and the place in the batch.
        evaluates: Whether the questions for evaluation are asked as well, once a pair.
    """

    persona: Persona
    spec: RolloutSpec
    seed: int = 0
    evaluates: bool = False

    def batches(self) -> list[Batch]:
        """Return what is asked, sample by sample, the positive side of each first.

        The id ``pair2-question14-sample0`` counts from 0 and depends on nothing else. The first
        samples of a longer plan are those of a shorter one.
        """
        asked, evaluated = self.persona.questions.extract, self.persona.questions.evaluate
        found = [
            Batch(sample, self._rows(side, asked, _QUESTION, sample))
            for sample in range(self.spec.samples)
            for side in SIDES
        ]
        if self.evaluates and evaluated:
            found += [Batch(-1, self._rows(side, evaluated, _EVALUATION, 0)) for side in SIDES]
        return found

    def rows(self) -> list[Rollout]:
        """Return all that is asked, without replies."""
        return [row for batch in self.batches() for row in batch.rows]

    def _rows(self, side: Side, questions: Sequence[str], kind: str, sample: int) -> list[Rollout]:
        pairs = list(enumerate(self.persona.instructions))[: self.spec.pairs]
        return [
            Rollout(
                id=f"pair{i}-{kind}{j}-sample{sample}",
                side=side,
                system=getattr(pair, side),
                question=asked,
                reply="",
            )
            for i, pair in pairs
            for j, asked in list(enumerate(questions))[: self.spec.questions]
        ]


def draw(
    subject: Subject,
    plan: Plan,
    *,
    earlier: Iterable[Rollout] = (),
    record: Callable[[Sequence[Rollout]], object] = lambda _: None,
    drawn_by: str = "",
) -> list[Rollout]:
    """Return the subject's replies, batch by batch.

    The replies of a pair differ by their instruction alone.

    Args:
        subject: The model that is asked; not changed.
        plan: What is asked.
        earlier: Replies of a run that ended early; a batch that is whole there is not drawn again.
        record: Called with all replies so far, after each batch.
        drawn_by: Digest that every reply carries, by which a later run knows them.

    Raises:
        DataError: The chat template refuses a system prompt.
        NonFiniteError: The model predicts NaN or infinity.
    """
    asked = replace(subject, sampling=plan.spec.sampling())
    known = {row.asked: row for row in earlier}
    rollouts: list[Rollout] = []
    for sample, rows in progress(plan.batches(), "rollouts"):
        if all(row.asked in known for row in rows):
            rollouts += [known[row.asked] for row in rows]
            continue
        replies = asked.replies(
            [question(row.question, system=row.system) for row in rows],
            sample_seed(plan.seed, sample),
        )
        rollouts += [
            row.model_copy(
                update={
                    "reply": reply.raw,
                    "is_whole": reply.tokens_out < plan.spec.max_new_tokens,
                    "drawn_by": drawn_by,
                }
            )
            for row, reply in zip(rows, replies, strict=True)
        ]
        record(rollouts)
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


def require_drawn_by(rollouts: Iterable[Rollout], digest: str, path: Path) -> None:
    """Check that replies were drawn from the model and with the settings of a recipe.

    Raises:
        DataError: They were not, so that a manifest would not tell the truth about them.
    """
    if any(row.drawn_by != digest for row in rollouts):
        raise DataError(
            f"{path}: has the replies of another model, seed or sampling; give the model and the "
            "rollouts of that run again"
        )


def reused(path: Path, plan: Plan) -> list[Rollout]:
    """Return the rollouts of an earlier run that asked exactly what this one would.

    Raises:
        DataError: The file cannot be read, or its replies answer something else.
    """
    found = {row.asked[:2]: row for row in read_rows(path, Rollout).values()}
    wanted = plan.rows()
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
