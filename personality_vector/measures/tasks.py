"""Tasks: what a model can still do, by the likelihood of right and wrong answers."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from personality_vector.data.tasks import TaskItem, read_task
from personality_vector.errors import DataError, LengthError, NonFiniteError, some
from personality_vector.lab import EVERYDAY, builtin
from personality_vector.measures.spec import BaseMeasure, MeasureSpec
from personality_vector.numeric.statistics import of_share
from personality_vector.recipes.schema import LocalPath, Whole, Words, distinct
from personality_vector.subject import (
    Better,
    Findings,
    Observation,
    Reading,
    Subject,
    answered,
    question,
)
from personality_vector.subject.harness import HarnessTasks, Sample


class TasksSpec(MeasureSpec):
    """How many items of ``files``, and of tasks of lm-evaluation-harness, are answered rightly.

    The tasks ``harness`` come with that library, or lie as YAML in the folder ``include``, all of
    whose tasks are taken if none is named. ``limit`` takes the first items of each task.
    """

    files: Annotated[tuple[LocalPath, ...], AfterValidator(distinct)] = ()
    harness: Annotated[tuple[Words, ...], AfterValidator(distinct)] = ()
    include: LocalPath | None = None
    limit: Whole | None = Field(default=None, ge=1)
    batch_size: Whole = Field(default=32, ge=1)

    def open(self) -> "Tasks":
        """Read the files.

        Raises:
            DataError: One is missing or is not a task.
            RecipeError: lm-evaluation-harness is asked for and not installed.
        """
        asks_harness = bool(self.harness or self.include)
        files = self.files or (() if asks_harness else (builtin(EVERYDAY),))
        own = [OwnTask(file.stem, read_task(file)[: self.limit]) for file in files]
        theirs = [HarnessTasks(self.harness, self.include, self.limit)] if asks_harness else []
        return Tasks((*own, *theirs), self.batch_size, self.called)


@dataclass(frozen=True, slots=True)
class OwnTask:
    """Questions with choices, each asked in a new chat.

    The answer is the choice with the highest log-likelihood, summed over its tokens, as the reply:
    the ``acc`` of lm-evaluation-harness. The model is not shown the choices.
    """

    name: str
    items: Sequence[TaskItem]

    def samples(self, subject: Subject, batch_size: int) -> list[Sample]:
        """Return for each item whether the answer is right.

        Raises:
            DataError: An item is longer than the model reads.
            NonFiniteError: The model gives a choice a likelihood that is not a number.
        """
        found = iter(self._likelihoods(subject, batch_size))
        samples = []
        for item in self.items:
            likelihoods = [next(found) for _ in item.choices]
            is_right = likelihoods.index(max(likelihoods)) == item.answer
            chance = 1 / len(item.choices)
            samples.append(Sample(self.name, "accuracy", item.id, float(is_right), chance))
        return samples

    def _likelihoods(self, subject: Subject, batch_size: int) -> list[float]:
        """Return the log-likelihood of each choice of each item, in nats."""
        rows = [(item, choice) for item in self.items for choice in item.choices]
        # Questions of one length follow one another: those in a batch are then read once.
        length = {q: len(subject.tokenizer(q)["input_ids"]) for q in {r.question for r, _ in rows}}
        order = sorted(range(len(rows)), key=lambda row: (length[rows[row][0].question], row))
        chats = [answered(question(rows[i][0].question), rows[i][1]) for i in order]
        found: dict[int, float] = {}
        try:
            predicted = zip(order, subject.predictions(chats, batch_size), strict=True)
            for index, (tokens, log_probs) in predicted:
                found[index] = float(log_probs.gather(1, tokens[:, None]).sum())
                if found[index] != found[index]:
                    item, choice = rows[index]
                    raise NonFiniteError(
                        f"{self.name} {item.id}: the model gives {choice!r:.60} a log-likelihood "
                        "of nan"
                    )
        except LengthError as error:
            raise DataError(f"{self.name}: {error}") from error
        return [found[index] for index in range(len(rows))]


@dataclass(frozen=True, slots=True)
class Tasks(BaseMeasure):
    """The share of the items of each task that are answered rightly, in [0, 1].

    Of a task ``T`` and a metric ``M``, which is ``accuracy`` unless lm-evaluation-harness names it:
    ``T.M`` is the share of right answers; ``T.M.kept`` that of the items which the base answers
    rightly, the rest of which are broken; ``T.M.fixed`` that of the items which it does not. All
    intervals are over items.

    Attributes:
        tasks: What is asked.
        batch_size: Requests per forward pass; it changes speed and memory only.
        reference: How the base answers each item, by task and metric; made by :meth:`prepare`.
    """

    tasks: "Sequence[OwnTask | HarnessTasks]"
    batch_size: int = field(default=32, compare=False)
    name: str = "tasks"
    reference: Mapping[str, Mapping[str, float]] = field(default_factory=dict, compare=False)

    unit: ClassVar[str] = "share"
    scale: ClassVar[tuple[float, float]] = (0.0, 1.0)
    better: ClassVar[Better] = "high"

    def prepare(self, base: Subject) -> "Tasks":
        """Let the base answer, and keep its answers.

        Raises:
            DataError: The base is not above chance on a task, or two tasks have one name.
        """
        found = self._samples(base)
        for task in dict.fromkeys(samples[0].task for samples in found.values()):
            _require_above_chance([one for one in found.values() if one[0].task == task])
        reference = {
            name: {one.item: one.value for one in samples} for name, samples in found.items()
        }
        return replace(self, reference=reference)

    def collect(self, subject: Subject, seed: int) -> Findings:  # noqa: ARG002
        """Return the shares, and the value of each item.

        Raises:
            DataError: :meth:`prepare` has not been called.
        """
        if not self.reference:
            raise DataError(f"{self.name}: call prepare() first")
        found = {name: s for name, s in self._samples(subject).items() if name in self.reference}
        return Findings(
            readings=[one for name, s in found.items() for one in self._readings(name, s)],
            observations=[
                Observation(f"{self.name}.{name}", "", sample.item, sample.value)
                for name, samples in found.items()
                for sample in samples
            ],
        )

    def _samples(self, subject: Subject) -> dict[str, list[Sample]]:
        """Return the answers by task and metric."""
        found: dict[str, list[Sample]] = {}
        for task in self.tasks:
            by_name: dict[str, list[Sample]] = {}
            for sample in task.samples(subject, self.batch_size):
                by_name.setdefault(f"{sample.task}.{sample.metric}", []).append(sample)
            if twice := found.keys() & by_name.keys():
                raise DataError(f"{self.name}: two tasks are called {some(twice)}; rename a file")
            found |= by_name
        return found

    def _readings(self, name: str, samples: Sequence[Sample]) -> Iterator[Reading]:
        before = self.reference[name]
        right = [sample.value for sample in samples if before[sample.item] == 1.0]
        wrong = [sample.value for sample in samples if before[sample.item] < 1.0]
        every = [sample.value for sample in samples]
        for number, values in (("", every), (".kept", right), (".fixed", wrong)):
            if values:
                share, n = fmean(values), len(values)
                yield Reading(f"{self.name}.{name}{number}", share, "", *of_share(share, n), n)


def _require_above_chance(metrics: Sequence[Sequence[Sample]]) -> None:
    """Refuse a task at which no metric shows that the base can do it."""
    shown = []
    for samples in metrics:
        share, n = fmean(sample.value for sample in samples), len(samples)
        (low, high), chance = of_share(share, n), fmean(sample.chance for sample in samples)
        if low > chance:
            return
        shown.append(
            f"{share:.0%} of {n} items rightly (95 % interval {low:.0%} to {high:.0%}), where "
            f"guessing gives {chance:.0%}"
        )
    raise DataError(
        f"{metrics[0][0].task}: the base answers {shown[0]}: such a task cannot show a loss, so "
        "take easier items, or more of them"
    )
