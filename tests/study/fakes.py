"""An intervention, measures and a judge that anybody could write: nothing of ours is inherited."""

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import torch

from personality_vector.study.study import Study
from personality_vector.subject.identity import digest_of
from personality_vector.subject.protocols import Answer, Findings, Reading, Rubric, Score
from personality_vector.subject.subject import Subject


def note(log: Path, line: str) -> None:
    """Append a line, whole, whichever process writes."""
    with log.open("a", encoding="utf-8") as file:
        file.write(line + "\n")


def noted(log: Path) -> list[str]:
    """Return the lines that were noted, or none."""
    return log.read_text(encoding="utf-8").splitlines() if log.exists() else []


@dataclass(frozen=True)
class Shifted:
    """``strength * size`` added to the weights of the head; ``file`` is part of what it does."""

    label: str
    size: float = 1.0
    file: Path | None = None
    steps: tuple[float, ...] | None = None

    def identity(self) -> str:
        return digest_of("shifted", self.size, self.file)

    def check(self, base: Any) -> None:
        assert base.entries

    @contextmanager
    def applied(self, subject: Subject, strength: float) -> Generator[Subject]:
        weight = subject.model.lm_head.weight
        saved = weight.detach().clone()
        try:
            with torch.no_grad():
                weight += strength * self.size
            yield subject
        finally:
            with torch.no_grad():
                weight.copy_(saved)


@dataclass(frozen=True)
class Counted:
    """The mean weight of the head; every collection is noted in a file."""

    log: Path
    name: str = "mean"
    seconds: float = 0.0
    options: int = 0
    unit: str = "weight"
    scale: None = None
    better: str = "high"

    def identity(self) -> str:
        return digest_of("counted", self.name, self.options)

    def prepare(self, base: Subject) -> "Counted":
        return self

    def collect(self, subject: Subject, seed: int) -> float:
        time.sleep(self.seconds)
        value = float(subject.model.lm_head.weight.detach().double().mean()) + seed
        note(self.log, f"{self.name} {seed} {value:.6f}")
        return value

    def finish(self, base: Subject, collected: float) -> Findings:
        return Findings(readings=[Reading(self.name, collected, "boldness", n=1)])


@dataclass(frozen=True)
class Asked:
    """Two answers, rated by whatever judges it was given."""

    log: Path
    judges: Sequence[Any] = ()
    name: str = "asked"
    rubrics: Sequence[Rubric] = (Rubric("boldness"),)
    unit: str = "score"
    scale: None = None
    better: str = "towards_pole"

    def identity(self) -> str:
        return digest_of("asked", self.name)

    def prepare(self, base: Subject) -> "Asked":
        return self

    def collect(self, subject: Subject, seed: int) -> list[Answer]:
        value = float(subject.model.lm_head.weight.detach().mean())
        note(self.log, f"{self.name} {seed} {value:.6f}")
        return [Answer(f"i{n}", 0, f"Q{n}?", f"{value + n:.4f}", ("boldness",)) for n in range(2)]

    def finish(self, base: Subject, collected: list[Answer]) -> Findings:
        return Findings(answers=collected)


@dataclass(frozen=True)
class Rates:
    """Reads the number that an answer is; ``mute`` cannot rate anything."""

    log: Path
    name: str = "reads"
    mute: bool = False
    scale: tuple[float, float] = (-100.0, 100.0)
    bases: list[str | None] = field(default_factory=list, compare=False)

    def identity(self) -> str:
        return digest_of("rates", self.name)

    def prepare(self, base: Subject) -> "Rates":
        return replace(self)

    def __call__(self, rubric: Rubric, answers: Sequence[Answer]) -> list[Score]:
        for answer in answers:
            note(self.log, f"{self.name} {answer.item} {answer.reply} {answer.base_reply}")
        if self.mute:
            return [Score(None, "it cannot say") for _ in answers]
        return [Score(float(answer.reply)) for answer in answers]


def forked(study: Study, out: Path, workers: int = 1) -> ForkProcess:
    """Run a study in another process, which need not import anything again."""
    process = get_context("fork").Process(
        target=study.run, args=(out,), kwargs={"workers": workers}
    )
    process.start()
    return process
