"""Seconds of a sweep whose strengths share batches, against point by point, and what differs.

    python -m tests.benchmarks.batched ADAPTER [--questions N] [--turns N]

The model is SmolLM2-135M-Instruct, ADAPTER a LoRA of it, swept over 20 strengths from -2 to 2. Both
ways take turns, so that what else the machine does slows both. The budget is that of one question:
five times fewer seconds, and no likelihood of a statement that differs by more than 1e-4.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from personality_vector.checkpoint import Checkpoint
from personality_vector.data.personas import Instrument, Item
from personality_vector.delta import Delta
from personality_vector.interventions.weights import WeightEdit
from personality_vector.lab import builtin
from personality_vector.measures.interview import Interview
from personality_vector.measures.likelihood import LikelihoodSpec
from personality_vector.measures.spec import QUESTION, Asking
from personality_vector.recipes.reading import read_recipe
from personality_vector.study.design import Point
from personality_vector.study.store import FILE, Store
from personality_vector.study.study import Study, study
from personality_vector.study.worker import Worker
from personality_vector.subject.spec import Sampling
from personality_vector.subject.subject import Subject

MODEL, TOKENS = "builtin:smollm2", 48
POINTS_PER_BATCH = 20
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table of both ways."""
    parser = argparse.ArgumentParser()
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--questions", type=int, default=1)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args(arguments)
    checkpoint = Checkpoint.open(MODEL)
    base = Subject.load(checkpoint)
    arm = WeightEdit(Delta.from_lora(given.adapter, checkpoint, stated=True), "lora")
    asked = instrument(given.questions)
    sampling = Sampling(TOKENS, batch_size=POINTS_PER_BATCH * len(asked.items))
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
    for what, (measure, number) in rows.items():
        plan = study(checkpoint, [arm], STRENGTHS, [measure])
        together, alone, apart = turns(base, plan, number)
        faster = statistics.median(b / a for a, b in zip(together, alone, strict=True))
        one, other = statistics.median(together), statistics.median(alone)
        print(f"| {what} | {one:.1f} s | {other:.1f} s | {faster:.1f} | {apart:.1e} |", flush=True)
    print(f"\nBudget of one question: {FASTER:g} times faster, at most {APART:g} nats apart.")


if __name__ == "__main__":
    main()
