"""What judges and the likelihood say of a chat model that a system prompt makes play either pole.

    python -m tests.benchmarks.prompted [--model builtin:smollm2] [--out runs/prompted]

The prompts are the instructions of the shipped personas, five for each pole; the questions are
those of `eval/instruments/acquaintance.yaml`. One sweep a trait, whose files are kept and reused.
AUC is the area under the ROC curve of high against low prompts, over answers (unscored ones stand
at the middle of the scale), or over prompts for the likelihood. Its 95 % interval draws prompts
and questions again. Agreement pools the answers of all traits, and of each.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).parent / "merging"))

from runner import markdown

from personality_vector.data.personas import Persona
from personality_vector.lab import builtin
from personality_vector.recipes.reading import read_recipe
from personality_vector.study.run import Run
from personality_vector.study.scores import agreement
from personality_vector.traits import BIG_FIVE

PERSONAS = "training/steering/personas"
BUDGET = (
    ("550 answers of at most 64 tokens", 8),
    ("2,200 statements", 4),
    ("texts of the classifiers, read by the model once", 2),
    ("the reader: 550 answers, 80 usual texts for each of five traits", 16),
)
"""What it takes, and minutes on two cores."""
_RESAMPLES = 1000
_SIDES = ("high", "low")


def recipe(model: str, trait: str) -> dict[str, Any]:
    """Return the sweep of one trait."""
    persona = read_recipe(builtin(f"{PERSONAS}/{trait}.yaml"), Persona)
    prompts = [
        {"label": f"{level} {number}", "system": getattr(pair, side)}
        for level, side in (("high", "positive"), ("low", "negative"))
        for number, pair in enumerate(persona.instructions, 1)
    ]
    judges = ["classifier", {"classifier": {"model": model, "name": "states"}}]
    interview = {
        "traits": [trait],
        "instrument": "builtin:eval/instruments/acquaintance.yaml",
        "generation": {"max_new_tokens": 64},
        "judges": [*judges, {"reader": {"limit": 40}}],
    }
    measures = [{"likelihood": {"traits": [trait], "limit": 20}}, {"interview": interview}]
    swept = {"interventions": prompts, "strengths": [1], "measures": measures}
    return {"base": model, **swept}


def area(high: Any, low: Any) -> str:
    """Return AUC and interval of ``(prompts, questions)`` scores of the two sides."""
    rng, found = np.random.default_rng(0), []
    for _ in range(_RESAMPLES):
        questions = rng.integers(0, high.shape[1], high.shape[1])
        sides = [
            side[rng.integers(0, len(side), len(side))][:, questions].ravel()
            for side in (high, low)
        ]
        found.append(_auc(*sides))
    bottom, top = np.quantile(found, [0.025, 0.975])
    return f"{_auc(high.ravel(), low.ravel()):.2f} ({bottom:.2f} to {top:.2f})"


def _auc(high: Any, low: Any) -> float:
    labels = [True] * len(high) + [False] * len(low)
    return float(roc_auc_score(labels, np.concatenate([high, low])))


def rows_of(run: Run, trait: str) -> list[list[str]]:
    """Return a row for each judge, and one for the likelihood."""
    answers, rows = run.answers(), []
    prompted = answers[answers["intervention"] != "base"]
    for judge, given in prompted.groupby("judge", sort=False):
        low, high = run["judges"][judge]["scale"]
        table = given.pivot_table("score", "intervention", "item", dropna=False)
        scored = float(table.notna().to_numpy().mean())
        sides = _sides(table.fillna((low + high) / 2))
        means = [
            f"{given[given['intervention'].str.startswith(p)]['score'].mean():.2f}" for p in _SIDES
        ]
        rows.append([trait, str(judge), f"{scored:.0%}", *means, area(*sides)])
    found = run.readings().query("measure == 'likelihood' and intervention != 'base'")
    table = found.set_index("intervention")[["value"]]
    sides = _sides(table)
    means = [f"{side.mean():.2f}" for side in sides]
    return [*rows, [trait, "likelihood", "", *means, area(*sides)]]


def _sides(table: pd.DataFrame) -> list[Any]:
    return [table[table.index.str.startswith(side)].to_numpy() for side in _SIDES]


def agreed(runs: Sequence[Run]) -> str:
    """Return the agreement of judges in each trait, and over all."""
    answers = pd.concat([run.answers() for run in runs], ignore_index=True)
    scales = {name: spec["scale"] for run in runs for name, spec in run["judges"].items()}
    tables = [agreement(answers, scales), agreement(answers.assign(trait="all"), scales)]
    rows = [
        [
            *(row[key] for key in ("trait", "judge", "other")),
            str(row["n"]),
            f"{row['spearman']:.2f}",
            f"{row['pearson']:.2f} ({row['ci_low']:.2f} to {row['ci_high']:.2f})",
            f"{row['alpha']:.2f}",
        ]
        for row in pd.concat(tables).to_dict("records")
    ]
    return markdown(["trait", "judge", "other", "n", "Spearman", "Pearson", "alpha"], rows)


def main() -> None:
    """Print the budget, sweep every trait, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="builtin:smollm2")
    parser.add_argument("--out", type=Path, default=Path("runs/prompted"))
    given = parser.parse_args()
    print(markdown(["what", "minutes"], [[what, str(took)] for what, took in BUDGET]), flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    for trait in BIG_FIVE:
        file = given.out / f"{trait}.yaml"
        file.write_text(yaml.safe_dump(recipe(given.model, trait)), encoding="utf-8")
        words = ["sweep", str(file), "--out", str(given.out / trait)]
        subprocess.run([Path(sys.executable).with_name("pvec"), *words], check=True)
    runs = {trait: Run(given.out / trait) for trait in BIG_FIVE}
    rows = [row for trait, run in runs.items() for row in rows_of(run, trait)]
    heads = ["trait", "read by", "scored", "mean, high prompts", "low prompts", "AUC"]
    print(f"\n{markdown(heads, rows)}\n\n{agreed(list(runs.values()))}")


if __name__ == "__main__":
    main()
