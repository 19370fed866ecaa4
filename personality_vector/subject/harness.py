"""Tasks of lm-evaluation-harness on a live subject, with its edit, steering and prompts."""

import contextlib
import importlib.metadata
import importlib.util
import io
import logging
import math
import random
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from personality_vector.errors import DataError, NonFiniteError, RecipeError, foreign, some
from personality_vector.subject.chat import fitted

if TYPE_CHECKING:
    from personality_vector.subject.subject import Subject


class Sample(NamedTuple):
    """How one item of a task was answered.

    Attributes:
        task: Name of the task.
        metric: What is counted, such as ``accuracy``.
        item: Name of the item in its task.
        value: 1 if the answer is right and 0 if it is wrong; some metrics lie between.
        chance: The expected value of a guess.
    """

    task: str
    metric: str
    item: str
    value: float
    chance: float


@dataclass(frozen=True, slots=True)
class HarnessTasks:
    """Tasks of lm-evaluation-harness, in the chat format.

    The numbers are those of ``lm_eval --apply_chat_template`` on the written checkpoint, with the
    same batch size. A prompt edits every chat before the model reads it, and steering knows where
    the prompt of each request ends.

    Attributes:
        names: Of tasks, groups or tags; all tasks of ``include`` if there are none.
        include: A folder of tasks as YAML, in place of those that come with the library. A file
            of data that one of them names is found as the library finds it: from the working
            directory.
        limit: Take so many items of each task, the first ones.
        version: Of the library; it is found, not given. Data sets of the Hub and files of data have
            no part in the identity of a measure.

    Raises:
        RecipeError: The library is not installed.
    """

    names: Sequence[str] = ()
    include: Path | None = None
    limit: int | None = None
    version: str = field(default="", init=False)

    def __post_init__(self) -> None:
        if importlib.util.find_spec("lm_eval") is None:
            raise RecipeError(
                "tasks of lm-evaluation-harness need the package lm-eval: "
                "pip install 'personality-vector[eval]'"
            )
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # not by that name
            object.__setattr__(self, "version", importlib.metadata.version("lm-eval"))

    def samples(self, subject: "Subject", batch_size: int) -> list[Sample]:
        """Return every answer by every metric that gives each item one number in [0, 1].

        Raises:
            DataError: There is no such task, its data cannot be read, or none of its metrics is of
                this kind.
            NonFiniteError: The model predicts NaN.
        """
        what = f"lm-evaluation-harness cannot ask {some(self.names) or self.include}"
        with _quiet(), _own_random_state(subject), foreign(DataError, what):
            from lm_eval import simple_evaluate
            from lm_eval.tasks import TaskManager

            manager = TaskManager(
                include_path=self.include and str(self.include),
                include_defaults=self.include is None,
            )
            found = simple_evaluate(
                _live(subject, batch_size),
                tasks=self._known(manager),
                limit=self.limit,
                apply_chat_template=True,
                bootstrap_iters=0,
                task_manager=manager,
            )
        return [
            sample
            for task, rows in found["samples"].items()
            for sample in _samples(task, rows, found["configs"][task]["output_type"])
        ]

    def _known(self, manager: Any) -> list[str]:
        """Return the names to ask for, if all of them exist."""
        names = list(self.names or manager.all_subtasks)
        unknown = [name for name in names if name not in manager.all_tasks]
        where = self.include or "lm-evaluation-harness"
        if unknown:
            known = some(manager.all_tasks, 12) or "no tasks"
            raise DataError(f"{where}: has no task {some(unknown)}; it has {known}")
        if not names:
            raise DataError(f"{where}: has no task; a task is a YAML file with the key task")
        return names


def _samples(task: str, rows: Sequence[Mapping[str, Any]], kind: str) -> list[Sample]:
    found: dict[str, list[Sample]] = {}
    for row in rows:
        chance = 1 / len(row["filtered_resps"]) if kind == "multiple_choice" else 0.0
        for metric in row["metrics"]:
            name = metric if row["filter"] == "none" else f"{metric}.{row['filter']}"
            value = float(row[metric]) if isinstance(row[metric], int | float) else math.nan
            sample = Sample(task, name, str(row["doc_id"]), value, chance)
            found.setdefault(name, []).append(sample)
    kept = [one for one in found.values() if all(0.0 <= sample.value <= 1.0 for sample in one)]
    if not kept:
        raise DataError(
            f"{task}: {some(found) or 'nothing'} does not give each item a number in [0, 1], so no "
            "answer is right or wrong; take a task with a metric such as acc or exact_match"
        )
    return [sample for one in kept for sample in one]


def _live(subject: "Subject", batch_size: int) -> Any:
    """Return a subject as a model of the library."""
    from lm_eval.models.huggingface import HFLM

    from personality_vector.subject.prompts import Prompts, reading

    subject.require_one_call()

    class Live(HFLM):  # type: ignore[misc]
        ends: dict[tuple[int, ...], int] = {}  # noqa: RUF012 - of each instance, once it asks

        def apply_chat_template(
            self,
            chat_history: Any,
            add_generation_prompt: Any = True,  # noqa: FBT002 - the signature of the library
        ) -> str:
            edit = subject.edit if add_generation_prompt else subject.edited
            shown = fitted(self.tokenizer, edit(chat_history), reply_follows=add_generation_prompt)
            return str(super().apply_chat_template(shown, add_generation_prompt))

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **given: Any) -> Any:
            # The library reads a request without its last token, and the last tokens of a long one.
            read = [(*context, *reply)[-self.max_length - 1 : -1] for _, context, reply in requests]
            self.ends = {}
            for row, (_, _, reply) in zip(read, requests, strict=True):
                end = len(row) + 1 - len(reply)
                if self.ends.setdefault(row, end) != end:
                    raise DataError("two requests of a task are one text with other replies in it")
            found = super()._loglikelihood_tokens(requests, *args, **given)
            if any(math.isnan(value) for value, _ in found):
                raise NonFiniteError("the model gives an answer of a task a likelihood of NaN")
            return found

        def _model_call(self, inps: Any, *args: Any, **given: Any) -> Any:
            ends = [_end_of(row, self.ends) for row in inps.tolist()]
            with reading(Prompts.of(inps, None, ends)):
                return super()._model_call(inps, *args, **given)

    return Live(pretrained=subject.model, tokenizer=subject.tokenizer, batch_size=batch_size)


def _end_of(row: Sequence[int], ends: Mapping[tuple[int, ...], int]) -> int:
    """Return where the prompt ends in a row of tokens, which may have padding on its right."""
    lengths = range(len(row), 0, -1)
    return next(ends[tuple(row[:n])] for n in lengths if tuple(row[:n]) in ends)


@contextmanager
def _quiet() -> Generator[None]:
    """Keep what the library would print: what matters is an error or a number."""
    theirs = logging.getLogger("lm_eval")
    usual = theirs.level
    theirs.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        theirs.setLevel(usual)


@contextmanager
def _own_random_state(subject: "Subject") -> Generator[None]:
    """Let the library seed every generator, and give the caller back the states of before."""
    import numpy as np
    import torch

    device = subject.model.device
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - tasks draw from it
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
