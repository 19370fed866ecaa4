"""What a sweep of poles and half differences found, as tables.

    pvec sweep eval/sweeps/distilled.yaml --out runs/distilled-sweep
    python -m tests.benchmarks.distilled runs/distilled-sweep

For each vector of a trait, by alpha: the likelihood of its trait (nats per token, high minus low
statements), the mean score of each judge with the number of answers that it scored, KL(edited ||
base) on the edited model's own replies, and guards. Then how closely each follows alpha, with
intervals over items.
"""

import argparse
import math
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parent / "merging"))

from runner import markdown

from personality_vector.study.run import Run
from personality_vector.study.tables import dose_response
from personality_vector.traits import BIG_FIVE

COSTS = {
    "divergence.mean": "KL mean",
    "divergence.p95": "p95",
    "divergence.max": "max",
    "guards.words": "words",
    "guards.repetition": "repeated",
    "guards.disclaimers": "disclaimers",
}


def trait_of(label: str) -> str:
    """Return the trait that the label of a vector names."""
    return next((trait for trait in BIG_FIVE if trait in label), "")


def row_of(points: pd.DataFrame, trait: str) -> list[str]:
    """Return what was read at one point of one vector."""
    own = points[points["trait"] == trait]
    cells = [f"{own[own['measure'] == 'likelihood']['value'].iloc[0]:.2f}"]
    for _, judged in own[own["judge"] != ""].groupby("judge", sort=False):
        found = judged.iloc[0]
        mean = "" if math.isnan(found["value"]) else f"{found['value']:.1f} "
        cells.append(f"{mean}[{int(found['n'])}]")
    costs = points.set_index("measure")["value"]
    return cells + [f"{costs[name]:.3g}" if name in costs else "" for name in COSTS]


def table(run: Run) -> str:
    """Return the table of all points; the base is that of each trait."""
    readings = run.readings()
    judges = [judge for judge in readings["judge"].unique() if judge]
    heads = ["vector", "alpha", "likelihood", *judges, *COSTS.values()]
    rows = []
    for label in readings["intervention"].unique():
        if label == "base":
            continue
        of_arm = readings[readings["intervention"].isin([label, "base"])]
        for strength, points in of_arm.groupby("strength"):
            rows.append([label, f"{strength:g}", *row_of(points, trait_of(label))])
    return markdown(heads, rows)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    run = Run(parser.parse_args().run)
    print(table(run))
    found = dose_response(run)
    own = found[[trait_of(row.intervention) == row.trait for row in found.itertuples()]]
    cells = [[_shown(value) for value in row] for row in own.to_numpy()]
    print(f"\n{markdown(list(own.columns), cells)}")


def _shown(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    main()
