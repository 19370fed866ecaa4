"""Seconds of a sweep whose strengths share batches, against point by point, and what differs.

    python -m tests.benchmarks.batched ADAPTER [--questions N] [--turns N] [--mergekit RUNS]

The model is SmolLM2-135M-Instruct, ADAPTER a LoRA of it, swept over 20 strengths from -2 to 2. Both
ways take turns, so that what else the machine does slows both. The budget is that of one question:
five times fewer seconds, and no likelihood of a statement that differs by more than 1e-4. With
``--mergekit`` the same replies also come from checkpoints that mergekit-yaml writes, in so many
runs, from which twenty are extrapolated.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import yaml

from personality_vector.checkpoint import Checkpoint
from personality_vector.data.personas import Instrument, Item
from personality_vector.delta import Delta
from personality_vector.interventions.weights import WeightEdit
from personality_vector.lab import builtin
from personality_vector.measures.interview import Interview
from personality_vector.measures.likelihood import LikelihoodSpec
from personality_vector.measures.spec import QUESTION, Asking
from personality_vector.merging.engine import merge
from personality_vector.recipes.reading import read_recipe
from personality_vector.study.design import Point
from personality_vector.study.store import FILE, Store
from personality_vector.study.study import Study, study
from personality_vector.study.worker import Worker
from personality_vector.subject import batch as batch_module
from personality_vector.subject import subject as subject_module
from personality_vector.subject.spec import Sampling
from personality_vector.subject.subject import Subject

MODEL, TOKENS = "builtin:smollm2", 48
BATCH = 80
STRENGTHS = [round(-2 + 4 * step / 19, 4) for step in range(20)]
FASTER, APART = 5.0, 1e-4


def measured(base: Subject, plan: Study) -> tuple[float, dict[tuple[float, str], float]]:
    """Return the seconds of measuring every point of an arm, and its observations."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Store.open(Path(folder) / FILE, create=True) as store,
    ):
        worker = Worker(plan, store)
        worker.__dict__["base"] = replace(base, memory={})
        points = [Point(arm.label, s, 0) for arm in plan.arms for s in arm.strengths]
        started = time.monotonic()
        worker.measure(points)
        seconds = time.monotonic() - started
        found = store.rows(
            "SELECT c.strength, o.item, o.value FROM observations o JOIN cells c ON c.id = o.cell"
        )
    return seconds, {(strength, item): value for strength, item, value in found}


def instrument(questions: int) -> Instrument:
    """Return the default question, or the first questions of the shipped interview."""
    if questions == 1:
        return Instrument(name="one", version="1", items=(Item(id="question", text=QUESTION),))
    shipped = read_recipe(builtin("eval/instruments/interview.yaml"), Instrument)
    return shipped.model_copy(update={"items": shipped.items[:questions]})


def turns(base: Subject, plan: Study, number: int) -> tuple[list[float], list[float], float]:
    """Return the seconds of both ways, turn by turn, and the largest difference of a likelihood."""
    together, alone, apart = [], [], 0.0
    for _ in range(number):
        one, ours = measured(base, plan)
        other, exact = measured(base, replace(plan, batch_strengths="never"))
        together.append(one)
        alone.append(other)
        # Observations are weighted so that their mean is mean(high) - mean(low): twice the value.
        apart = max([apart, *(abs(ours[key] - exact[key]) / 2 for key in exact)])
    return together, alone, apart


@contextmanager
def timed(found: list[float]) -> Generator[None]:
    """Add up the seconds that the model decodes."""
    inner = subject_module.generate_batch

    def generate(*given: Any, **options: Any) -> Any:
        started = time.monotonic()
        replies = inner(*given, **options)
        found.append(time.monotonic() - started)
        return replies

    with (
        mock.patch.object(subject_module, "generate_batch", generate),
        mock.patch.object(batch_module, "generate_batch", generate),
    ):
        yield


def by_mergekit(
    base: Checkpoint, tuned: Path, asked: Asking, strength: float, folder: Path
) -> tuple[float, float, float]:
    """Return the seconds of mergekit-yaml, of loading what it wrote, and of the same replies."""
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(base.path),
        "models": [{"model": str(tuned), "parameters": {"weight": strength}}],
        "dtype": "float32",
    }
    (folder / "recipe.yml").write_text(yaml.safe_dump(recipe))
    started = time.monotonic()
    command = [Path(sys.executable).parent / "mergekit-yaml", folder / "recipe.yml", folder / "out"]
    subprocess.run([*command, "--quiet"], check=True, capture_output=True)
    merged = time.monotonic()
    subject = Subject.load(folder / "out")
    loaded = time.monotonic()
    list(asked(subject, 0))
    return merged - started, loaded - merged, time.monotonic() - loaded


def print_mergekit(adapter: Path, asked: Asking, runs: int) -> None:
    """Print the mean seconds of a point by mergekit-yaml, and of twenty, extrapolated."""
    base = Checkpoint.open(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        tuned = Path(folder) / "tuned"
        merge(base, [(adapter, 1.0)], out=tuned)
        found = []
        for strength in STRENGTHS[-runs:]:
            own = Path(folder) / f"{strength}"
            own.mkdir()
            found.append(by_mergekit(base, tuned, asked, strength, own))
            shutil.rmtree(own)
    merged, loaded, said = (statistics.fmean(part) for part in zip(*found, strict=True))
    point = merged + loaded + said
    print(
        f"\nmergekit-yaml, mean of {runs}: {merged:.1f} s to merge, {loaded:.1f} s to load, "
        f"{said:.1f} s to reply; 20 points, extrapolated: {20 * point:.0f} s"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of both ways."""
    parser = argparse.ArgumentParser()
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--questions", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--mergekit", type=int, default=0)
    given = parser.parse_args(arguments)
    checkpoint = Checkpoint.open(MODEL)
    base = Subject.load(checkpoint)
    arm = WeightEdit(Delta.from_lora(given.adapter, checkpoint, stated=True), "lora")
    asked = instrument(given.questions)
    sampling = Sampling(TOKENS, batch_size=BATCH)
    likely = LikelihoodSpec(traits=("extraversion",), limit=20, batch_size=80).open()
    rows: dict[str, tuple[Any, int]] = {
        f"{len(asked.items)} replies of up to {TOKENS} tokens": (
            Interview(Asking(asked, sampling), ()),
            given.turns,
        ),
        "40 held-out statements": (likely, 1),
    }
    print("| 20 strengths of | one batch | point by point | times faster | apart |")
    print("|---|---:|---:|---:|---:|")
    said = ""
    for what, (measure, number) in rows.items():
        plan = study(checkpoint, [arm], STRENGTHS, [measure])
        decoding: list[float] = []
        with timed(decoding):
            together, alone, apart = turns(base, plan, number)
        faster = statistics.median(b / a for a, b in zip(together, alone, strict=True))
        one, other = statistics.median(together), statistics.median(alone)
        print(f"| {what} | {one:.1f} s | {other:.1f} s | {faster:.1f} | {apart:.1e} |", flush=True)
        share = sum(decoding) / sum([*together, *alone])
        said += f"{what}: {share:.0%} of both is decoding\n" if decoding else ""
    print(f"\n{said}Budget of one question: {FASTER:g} times faster, at most {APART:g} nats apart.")
    if given.mergekit:
        print_mergekit(given.adapter, Asking(asked, sampling), given.mergekit)


if __name__ == "__main__":
    main()
