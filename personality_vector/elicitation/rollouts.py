"""Rollouts: a model's own answers under the two system prompts of each instruction pair."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field

from personality_vector.data.personas import Persona
from personality_vector.data.rows import read_rows
from personality_vector.elicitation.recipe import RolloutSpec
from personality_vector.errors import DataError, some
from personality_vector.progress import progress
from personality_vector.recipes.schema import Recipe
from personality_vector.subject import Answer, Chat, Score, answered, question
from personality_vector.subject.subject import Subject, sample_seed

Side = Literal["positive", "negative"]
SIDES: tuple[Side, ...] = ("positive", "negative")
ROLLOUTS = "rollouts.jsonl"
"""The file beside a vector with every reply that was drawn for it, kept or dropped."""


class Rollout(Recipe):
    """One reply with its ratings and whether it was kept: a line of ``rollouts.jsonl``.

    Attributes:
        id: Shared by the positive and the negative reply of a pair.
        side: Which instruction of the pair the model was under.
        system: The instruction, which is the whole system prompt.
        question: The user's message.
        reply: The reply, without surrounding white space.
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
        """The chat as the model read and answered it."""
        return answered(question(self.question, system=self.system), self.reply)

    @property
    def answer(self) -> Answer:
        """What a judge reads, which excludes the system prompt."""
        return Answer(self.id, 0, self.question, self.reply)

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
        reasons = [score.reason for score in (trait, coherence) if score.value is None]
        return self.model_copy(update={**percents, "reason": "; ".join(dict.fromkeys(reasons))})

    def unrated(self) -> "Rollout":
        """Return the reply without ratings."""
        return Rollout(**self.model_dump(include={"id", "side", "system", "question", "reply"}))


class Pair(NamedTuple):
    """The two replies with one id."""

    positive: Rollout
    negative: Rollout


def planned(persona: Persona, spec: RolloutSpec, sample: int) -> list[Rollout]:
    """Return what sample ``sample`` asks, with empty replies: positive side first, then negative.

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
            chats = [question(row.question, system=row.system) for row in rows]
            replies = asked.replies(chats, sample_seed(seed, sample))
            rollouts += [
                row.model_copy(update={"reply": reply.text})
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
