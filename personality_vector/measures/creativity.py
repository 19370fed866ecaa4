"""Creativity: requests for ideas, whose answers judges rate, and how many ideas they hold."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from statistics import fmean
from typing import ClassVar

from pydantic import Field

from personality_vector.data.ideas import (
    CRITERIA,
    TASKS,
    CreativityItem,
    distinct_ideas,
    read_tasks,
)
from personality_vector.data.personas import Item
from personality_vector.data.texts import words
from personality_vector.judges.spec import AnyJudge
from personality_vector.lab import builtin
from personality_vector.measures.spec import (
    IDEAS,
    Asking,
    AskingMeasure,
    MeasureSpec,
    TaskFiles,
)
from personality_vector.recipes.schema import Whole
from personality_vector.subject import (
    Answer,
    Better,
    Findings,
    GenerationSpec,
    Judge,
    Observation,
    Reading,
    Rubric,
    Subject,
    rated,
    rated_for,
    said,
)


class CreativitySpec(MeasureSpec):
    """Creativity tasks, whose answers ``judges`` rate for the criteria of their task.

    ``limit`` keeps the first items of each task.
    """

    tasks: TaskFiles = Field(default_factory=lambda: tuple(map(builtin, TASKS)))
    limit: Whole | None = Field(default=None, ge=1)
    judges: tuple[AnyJudge, ...] = ()
    generation: GenerationSpec = GenerationSpec(**IDEAS)

    def open(self) -> "Creativity":
        """Read the tasks and what the judges need.

        Raises:
            RecipeError: A file is missing or not a task.
            DataError: A judge rates for none of the criteria, or two tasks have one name.
        """
        asked = read_tasks(self.tasks, self.limit)
        used = {name for item in asked.items for name in _criteria_of(item)}
        rubrics = [rubric for name, rubric in CRITERIA.items() if name in used]
        judges = tuple(spec.open() for spec in self.judges)
        for judge in judges:
            found = rated_for(judge, rubrics)
            for rubric in found or rubrics[:1]:
                rated(judge, rubric, [])  # refused before a model is loaded, if it cannot
        asking = Asking(asked, self.generation.sampling(), self.generation.samples)
        return Creativity(asking, rubrics, judges, self.called)


@dataclass(frozen=True, slots=True)
class Creativity(AskingMeasure):
    """Answers to creativity tasks, and two numbers that need no judge.

    The scores of a judge are means over answers, for each criterion; several measures, each with
    a task and a name of its own, keep tasks apart. ``fluency``: distinct ideas of an answer, the
    entries of its list or else its sentences; two with the same content words are one. ``words``:
    those of an answer. Both are means over items, with an interval over items, and a reply that
    ends inside a thought is unscored. An answer without text has no idea.

    Attributes:
        asking: The requests, and how replies are drawn.
        rubrics: What the answers of at least one task are rated for.
        judges: Who rates; answers do not depend on them.
    """

    asking: Asking
    rubrics: Sequence[Rubric] = field(compare=False)
    judges: Sequence[Judge] = field(default=(), compare=False)
    name: str = "creativity"

    unit: ClassVar[str] = "score"
    better: ClassVar[Better] = "none"  # words and noise are not better

    def collect(self, subject: Subject, seed: int) -> list[Answer]:
        """Return the answers."""
        return [one.as_answer(_criteria_of(one.item)) for one in self.asking(subject, seed)]

    def finish(self, base: Subject, collected: list[Answer]) -> Findings:  # noqa: ARG002
        """Return the answers, and the numbers that need no judge."""
        texts = [(one.item, said(one.reply)) for one in collected]
        by_item: dict[str, list[str]] = {}
        for item, one in texts:
            by_item.setdefault(item, []).extend([one.answer] * one.is_finished)
        found = [self._mean(number, by_item, len(texts)) for number in _NUMBERS]
        readings, seen = zip(*found, strict=True)
        return Findings(collected, readings, [*chain.from_iterable(seen)])

    def _mean(
        self, number: str, by_item: Mapping[str, Sequence[str]], asked: int
    ) -> tuple[Reading, list[Observation]]:
        """Return a number as a mean over items, and the mean of each over its answers."""
        from personality_vector.numeric.statistics import mean_and_interval

        name, (count, unit) = f"{self.name}.{number}", _NUMBERS[number]
        seen = [
            Observation(name, "", item, fmean(map(count, texts)))
            for item, texts in by_item.items()
            if texts
        ]
        mean, low, high = mean_and_interval([one.value for one in seen])
        n = sum(map(len, by_item.values()))
        return Reading(name, mean, "", low, high, n, asked - n, unit), seen


_NUMBERS: Mapping[str, tuple[Callable[[str], int], str]] = {
    "fluency": (lambda text: len(distinct_ideas(text)), "ideas"),
    "words": (lambda text: len(words(text)), "words"),
}


def _criteria_of(item: Item) -> tuple[str, ...]:
    return item.criteria if isinstance(item, CreativityItem) else ()
