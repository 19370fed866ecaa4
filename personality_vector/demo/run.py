"""The demo: the shipped smoke recipes in sequence, on the embedded model.

Every step publishes its directory whole, so a demo that was interrupted resumes.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import pandas as pd

from personality_vector.delta import Delta
from personality_vector.delta.similarity import similarity
from personality_vector.elicitation.extract import extract_recipe
from personality_vector.elicitation.recipe import SteerRecipe
from personality_vector.finetuning.recipe import TrainRecipe
from personality_vector.finetuning.sft import train
from personality_vector.lab import builtin, find_recipe
from personality_vector.merging.engine import write_merge
from personality_vector.merging.plan import plan_recipe
from personality_vector.merging.recipe import MergeRecipe
from personality_vector.recipes.reading import read_recipe
from personality_vector.recipes.schema import Recipe
from personality_vector.report.answers import answers_of, sample_answers
from personality_vector.report.page import write_report
from personality_vector.report.tables import print_frame
from personality_vector.study.design import BASE
from personality_vector.study.recipe import CompareRecipe, SweepRecipe, open_study
from personality_vector.study.run import Run
from personality_vector.study.tables import dose_response, matched_effect
from personality_vector.subject.chat import question
from personality_vector.subject.subject import Subject
from personality_vector.traits import Pole

POLES = (Pole("extraversion", "high"), Pole("neuroticism", "high"))
R = TypeVar("R", bound=Recipe)


def run(out: Path, *, force: bool = False) -> None:
    """Train two poles, diff, merge, sweep alpha, steer, compare; print tables and report paths.

    Args:
        out: Directory for everything; steps that are complete there are skipped.
        force: Repeat every step.
    """
    started = time.monotonic()
    Demo(out.absolute(), force).run()
    sys.stdout.write(f"done in {time.monotonic() - started:.0f} s\n")


@dataclass(frozen=True, slots=True)
class Demo:
    """The steps of the demo, and where each one writes."""

    out: Path
    force: bool

    def run(self) -> None:
        """Take every step."""
        for pole in POLES:
            self._step(f"fine-tune {pole}", self.place("tuned", pole), partial(self._train, pole))
            self._step(f"diff {pole}", self.place("vectors", pole), partial(self._diff, pole))
        self._step("merge", self.out / "merged", self._merge)
        self._step("extract a steering vector", self.out / "steering", self._extract)
        self._show_similarity()
        self._sweep()
        _show_merged(self.out / "merged")
        self._compare()

    def place(self, kind: str, pole: Pole) -> Path:
        """Return where the fine-tune (``tuned``) or the delta (``vectors``) of a pole goes."""
        return self.out / kind / f"{pole.trait}-{pole.level}"

    def _step(self, title: str, folder: Path, make: Callable[[Path], object]) -> None:
        done = folder.exists() and not self.force
        sys.stderr.write(f"{title}{': already done' if done else ''}\n")
        if not done:
            make(folder)

    def _train(self, pole: Pole, folder: Path) -> None:
        train(_recipe("training/smoke", TrainRecipe, f"pole={pole}"), folder, force=self.force)

    def _diff(self, pole: Pole, folder: Path) -> None:
        delta = Delta.between(builtin("builtin:demo"), self.place("tuned", pole), pole=pole)
        delta.save(folder, force=self.force)

    def _merge(self, folder: Path) -> None:
        terms = [
            f"terms.{index}.tuned={self.place('tuned', pole)}" for index, pole in enumerate(POLES)
        ]
        recipe = _recipe("merges/smoke", MergeRecipe, *terms)
        write_merge(plan_recipe(recipe), folder, force=self.force)

    def _extract(self, folder: Path) -> None:
        vector = extract_recipe(_recipe("training/steering/smoke", SteerRecipe))
        vector.save(folder, force=self.force)

    def _show_similarity(self) -> None:
        deltas = [Delta.load(self.place("vectors", pole)) for pole in POLES]
        cosines = similarity(deltas).cosine().tolist()
        frame = pd.DataFrame(cosines, columns=[delta.label for delta in deltas])
        frame.insert(0, "", [delta.label for delta in deltas])
        print_frame("Cosine between the two personality vectors", frame)

    def _sweep(self) -> None:
        sys.stderr.write("sweep alpha\n")
        tuned = [
            f"interventions.{index}.tuned={self.place('tuned', pole)}"
            for index, pole in enumerate(POLES)
        ]
        run = self._measured("sweep", _recipe("eval/sweeps/smoke", SweepRecipe, *tuned))
        print_frame("Trait against alpha, on held-out statements", dose_response(run))
        answers = answers_of(run)
        for pole in POLES:
            said = sample_answers(answers, BASE) | sample_answers(answers, str(pole))
            _show_answers(str(pole), said)
        sys.stdout.write(f"\nreport of the sweep: {write_report(run)}\n")

    def _compare(self) -> None:
        sys.stderr.write("compare weights, activations and a prompt\n")
        made = (
            f"interventions.0.tuned={self.place('tuned', POLES[0])}",
            f"interventions.1.vector={self.out / 'steering'}",
        )
        run = self._measured("compare", _recipe("eval/compare/smoke", CompareRecipe, *made))
        print_frame(f"At equal effect on {run['pole']}", matched_effect(run))
        sys.stdout.write(f"\nreport of the comparison: {write_report(run)}\n")

    def _measured(self, kind: str, recipe: SweepRecipe) -> Run:
        run = open_study(recipe).run(self.out / kind, force=self.force)
        run.write_manifest(kind)
        return run


def _recipe(name: str, kind: type[R], *settings: str) -> R:
    return read_recipe(find_recipe(name), kind, settings)


def _show_answers(title: str, answers: dict[float, list[tuple[str, str]]]) -> None:
    sys.stdout.write(f"\n{title}: three answers per alpha (0 is the base)\n")
    for alpha, replies in sorted(answers.items()):
        for index, (reply, _) in enumerate(replies):
            sys.stdout.write(f"  {f'{alpha:g}' if index == 0 else '':>5}  {reply}\n")


def _show_merged(folder: Path) -> None:
    """Let the merged checkpoint speak, loaded as any other."""
    subject = Subject.load(folder, device="cpu")
    chats = [question("What kind of person are you?")] * 3
    sys.stdout.write("\nmerged (0.8 extraversion:high - 0.6 neuroticism:high)\n")
    for reply in subject.replies(chats, seed=0):
        sys.stdout.write(f"         {reply.text}\n")
