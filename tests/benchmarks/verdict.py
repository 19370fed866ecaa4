"""What the comparisons of eval/compare/README.md say of claims about weights and activations.

    python -m tests.benchmarks.verdict --apart RUN --robustness RUN --vectors DIR

The runs are those of ``eval/sweeps/apart.yaml`` and ``robustness.yaml``;
``DIR`` holds, for each seed, ``steering`` and ``deltas`` with one folder for each trait. The other
claims are read from the tables of the comparisons themselves (``pvec report RUN``).
"""

import argparse
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from personality_vector.checkpoint import Checkpoint
from personality_vector.delta.opening import open_delta
from personality_vector.delta.similarity import similarity
from personality_vector.numeric.statistics import mean_difference
from personality_vector.steering import SteeringVector
from personality_vector.study.comparison import in_pairs
from personality_vector.study.run import Run
from personality_vector.study.scores import numbered

LAYER, FIRST, LAST = 14, 1, 10

Shifts = Mapping[str, Float[ndarray, "items seeds 1"]]
"""How far each intervention moved the score of an item from the base's, seed by seed."""


def shifts(answers: pd.DataFrame) -> Shifts:
    """Return the shifts of one measure at one turn."""
    table = answers.pivot_table(index=["item", "seed"], columns="intervention", values="score")
    moved = table.drop(columns="base").sub(table["base"], axis=0)
    return {label: moved[label].unstack("seed").to_numpy()[..., None] for label in moved}


def shown(one: Shifts, other: Shifts, label: str) -> str:
    """Return the shift before, the shift after, and their difference, each with its interval."""
    found = [mean_difference(each[label]) for each in (one, other)]
    found.append(mean_difference(other[label], one[label]))
    return " | ".join(f"{each.value:.2f} ({each.low:.2f} to {each.high:.2f})" for each in found)


def print_robustness(run: Run) -> None:
    """Print what is left of a shift out of character, and at the last turn."""
    answers = numbered(run.answers())
    answers["item"] = answers["item"].str.partition(" at turn ")[0]
    plain, out = (answers[answers["measure"] == name] for name in ("interview", "out"))
    first = shifts(plain[plain["turn"] == FIRST])
    later = {"out of character": out, f"turn {LAST}": plain[plain["turn"] == LAST]}
    for what, rows in later.items():
        print(f"\n| shift of the judged trait | turn {FIRST} | {what} | difference |")
        print("|---|---|---|---|")
        after = shifts(rows)
        for label in first:
            print(f"| {label} | {shown(first, after, label)} |")


def print_apart(run: Run) -> None:
    """Print how far each vector moves both traits, and what it loses without the other one."""
    seen = in_pairs(run.observations())
    traits = list(seen["trait"].unique())
    print("\n| vector | coefficient | " + " | ".join(f"{t}, nats" for t in traits) + " |")
    print("|---|---:|" + "---|" * len(traits))
    table = seen.pivot_table(
        index=["trait", "item", "seed"], columns=["intervention", "strength"], values="value"
    )
    base = table["base", 0.0]
    for place in [place for place in table if place[0] != "base"]:
        found = [
            mean_difference(*(each[trait].unstack("seed").to_numpy()[..., None] for each in pair))
            for trait in traits
            for pair in [(table[place], base)]
        ]
        shifts_of = " | ".join(f"{x.value:.3f} ({x.low:.3f} to {x.high:.3f})" for x in found)
        print(f"| {place[0]} | {place[1]:g} | {shifts_of} |")
    for whole, rest in ((one, other) for one in table for other in table):
        if rest[0].startswith(f"{whole[0]} without") and rest[1] == whole[1]:
            pair = (table[place][whole[0]].unstack("seed") for place in (rest, whole))
            lost = mean_difference(*(each.to_numpy()[..., None] for each in pair))
            interval = f"{lost.value:.3f} ({lost.low:.3f} to {lost.high:.3f})"
            print(f"{rest[0]} at {rest[1]:g}: own trait {interval}")


def print_cosines(folder: Path, base: Checkpoint) -> None:
    """Print the cosines between traits, of activation vectors and of half differences."""
    print("\n| cosine | " + " | ".join(seeds := sorted(p.name for p in folder.glob("[0-9]*"))))
    print("|---|" + "---:|" * len(seeds))
    traits = sorted(path.name for path in (folder / seeds[0] / "steering").iterdir())
    for one, other in combinations(traits, 2):
        row = []
        for seed in seeds:
            pair = (SteeringVector.load(folder / seed / "steering" / t) for t in (one, other))
            row.append(next(pair).cosine(next(pair), LAYER))
        print(f"| {one}, {other}, layer {LAYER} | " + " | ".join(f"{x:.2f}" for x in row) + " |")
        deltas = [folder / seed / "deltas" for seed in seeds]
        found = [
            float(similarity([open_delta(path / t, base) for t in (one, other)]).cosine()[0, 1])
            for path in deltas
            if (path / one).is_dir() and (path / other).is_dir()
        ]
        print(f"| {one}, {other}, weights | " + " | ".join(f"{x:.2f}" for x in found) + " |")
    for trait in traits:
        pairs = combinations(
            [SteeringVector.load(folder / seed / "steering" / trait) for seed in seeds], 2
        )
        found = [one.cosine(other, LAYER) for one, other in pairs]
        print(f"| {trait}, two seeds | " + " | ".join(f"{x:.2f}" for x in found) + " |")


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables that are asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--apart", type=Path)
    parser.add_argument("--robustness", type=Path)
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--base", default="builtin:smollm2")
    given = parser.parse_args(arguments)
    np.set_printoptions(precision=2)
    if given.apart:
        print_apart(Run(given.apart))
    if given.robustness:
        print_robustness(Run(given.robustness))
    if given.vectors:
        print_cosines(given.vectors, Checkpoint.open(given.base))


if __name__ == "__main__":
    main()
