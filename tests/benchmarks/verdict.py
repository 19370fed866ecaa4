"""What the comparisons of eval/compare/README.md say of claims about weights and activations.

    python -m tests.benchmarks.verdict --compare RUN --apart RUN --robustness RUN --vectors DIR

The runs are those of ``eval/compare/verdict.yaml``, ``eval/sweeps/apart.yaml`` and
``robustness.yaml``; ``DIR`` holds, for each seed, ``steering`` and ``deltas`` with one folder for
each trait. Other figures are in the tables of the comparisons themselves (``pvec report RUN``).
"""

import argparse
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from personality_vector.checkpoint import Checkpoint
from personality_vector.delta.opening import open_delta
from personality_vector.delta.similarity import similarity
from personality_vector.numeric.statistics import Interval, mean_difference
from personality_vector.steering import SteeringVector
from personality_vector.study.comparison import Comparison, in_pairs
from personality_vector.study.run import Run
from personality_vector.study.scores import numbered
from personality_vector.subject import AT_TURN

LAYER, HALF = 14, 5
SHOWN = ("likelihood shift", "states shift", "off_target", "divergence p95", "kept")


def shown(moved: "pd.Series[float]", digits: int) -> str:
    """Return the mean of what is known of items and seeds, with its 95 % interval."""
    return with_interval(mean_difference(moved.unstack("seed").to_numpy()[..., None]), digits)


def with_interval(found: Interval, digits: int) -> str:
    """Return a number with its interval, where it has one."""
    bounds = f" ({found.low:.{digits}f} to {found.high:.{digits}f})"
    return f"{found.value:.{digits}f}{'' if np.isnan(found.low) else bounds}"


def scores(answers: pd.DataFrame) -> Float[ndarray, "items seeds answers"]:
    """Return the scores of one intervention; NaN where the judge gave none."""
    number = answers.groupby(["item", "seed"]).cumcount()
    table = answers.assign(n=number).pivot(index="item", columns=["seed", "n"], values="score")
    return table.sort_index(axis=1).to_numpy().reshape(len(table), table.columns.levshape[0], -1)


def print_robustness(run: Run) -> None:
    """Print the judged answers in and out of character, and at later turns of a conversation."""
    answers = numbered(run.answers())
    answers["item"] = answers["item"].str.partition(AT_TURN)[0]
    of = dict(list(answers.groupby("measure")))
    turns = of["conversation"].groupby("turn")
    again = of["conversation"]["turn"] > HALF
    for columns in (
        {"in character": of["interview"], "out of character": of["out"]},
        {f"turn {turn}": turns.get_group(turn) for turn in (1, HALF, 2 * HALF)},
        {f"turns 1 to {HALF}": of["conversation"][~again], "later": of["conversation"][again]},
    ):
        print(f"\n| judged answers | {' | '.join(columns)} | last minus first |")
        print("|---|" + "---|" * (len(columns) + 1))
        for label in answers["intervention"].unique():
            found = [scores(rows[rows["intervention"] == label]) for rows in columns.values()]
            shown = [*map(mean_difference, found), mean_difference(found[-1], found[0])]
            print(f"| {label} | " + " | ".join(with_interval(one, 2) for one in shown) + " |")


def print_apart(run: Run) -> None:
    """Print how far each vector moves both traits, and what it loses without the other one.

    A label is that of its trait, or ``TRAIT without OTHER``, at the same coefficients.
    """
    seen = in_pairs(run.observations())
    table = seen.pivot_table(
        index=["trait", "item", "seed"], columns=["intervention", "strength"], values="value"
    )
    moved = table.drop(columns="base", level=0).sub(table["base", 0.0], axis=0)
    traits = list(seen["trait"].unique())
    print("\n| vector | coefficient | " + " | ".join(f"{t}, nats" for t in traits) + " |")
    print("|---|---:|" + "---|" * len(traits))
    for label, strength in moved:
        found = " | ".join(shown(moved[label, strength][trait], 3) for trait in traits)
        print(f"| {label} | {strength:g} | {found} |")
    for label, strength in moved:
        own = label.partition(" without ")[0]
        if own != label:
            lost = (moved[label, strength] - moved[own, strength])[own]
            print(f"{label} at {strength:g}: own trait {shown(lost, 3)}")


def print_pairs(run: Run) -> None:
    """Print the differences between each two interventions, where they are equal in a number."""
    comparison = Comparison(run)
    for axis in comparison.axes:
        columns = [one for one in comparison.columns(axis) if one.name in SHOWN]
        print(f"\n| at equal {axis} | " + " | ".join(one.name for one in columns) + " |")
        print("|---|" + "---|" * len(columns))
        for target, rows in comparison.matched_on(axis).dropna().groupby("target"):
            places = list(zip(rows["intervention"], rows["strength"], strict=True))
            for other, one in combinations(places, 2):
                found = [column.between(one, other) for column in columns]
                cells = [with_interval(x, 3) for x in found]
                print(f"| {target:g}: {one[0]} minus {other[0]} | " + " | ".join(cells) + " |")


def print_cosines(folder: Path, base: Checkpoint) -> None:
    """Print the cosines between traits, of activation vectors and of half differences."""
    seeds = sorted(path.name for path in folder.glob("[0-9]*"))
    print("\n| cosine | " + " | ".join(seeds) + " |")
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
    parser.add_argument("--compare", type=Path)
    parser.add_argument("--apart", type=Path)
    parser.add_argument("--robustness", type=Path)
    parser.add_argument("--vectors", type=Path)
    parser.add_argument("--base", default="builtin:smollm2")
    given = parser.parse_args(arguments)
    if given.compare:
        print_pairs(Run(given.compare))
    if given.apart:
        print_apart(Run(given.apart))
    if given.robustness:
        print_robustness(Run(given.robustness))
    if given.vectors:
        print_cosines(given.vectors, Checkpoint.open(given.base))


if __name__ == "__main__":
    main()
