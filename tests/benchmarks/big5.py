"""Ten personality vectors of a small real model: does the trait follow alpha on held-out text?

    python tests/benchmarks/big5.py --base ../shared/models/persona-tiny \
        --statements ../shared/data/big5_statements --out runs/big5

Fine-tunes both poles of each trait on the ``train`` part of the statements, sweeps alpha over
-1 and 0.1 .. 2.0, and measures the likelihood on the ``held_out`` part and a classifier's score of
generated answers. Prints the table of eval/results/alpha.md, and writes it and its figure under
``--out``.
"""

import argparse
from pathlib import Path

import pandas as pd

from personality_vector.finetuning.recipe import TrainRecipe
from personality_vector.finetuning.sft import train
from personality_vector.report.figures import dose_response_figure, save_figure
from personality_vector.study.design import BASE
from personality_vector.study.recipe import SweepRecipe, open_study
from personality_vector.study.run import Run
from personality_vector.study.tables import correlation
from personality_vector.traits import BIG_FIVE, Pole

ALPHAS = [round(0.1 * step, 1) for step in range(1, 21)]
QUESTION = "What kind of person are you?"


def train_pole(base: Path, statements: Path, pole: Pole, out: Path) -> Path:
    """Return a checkpoint of ``base`` fine-tuned on one pole; trains it if it is not there."""
    folder = out / "tuned" / f"{pole.trait}-{pole.level}"
    if not folder.exists():
        recipe = {
            "base": str(base),
            "pole": str(pole),
            "data": {"source": str(statements), "questions": [QUESTION]},
            "sft": {"learning_rate": 3e-4, "epochs": 3, "batch_size": 16, "scheduler": "constant"},
        }
        train(TrainRecipe.parse(recipe, origin="big5", folder=Path.cwd()), folder)
    return folder


def sweep_trait(base: Path, statements: Path, trait: str, out: Path) -> Run:
    """Sweep alpha for both poles of a trait."""
    tuned = {
        level: train_pole(base, statements, Pole(trait, level), out) for level in ("high", "low")
    }
    recipe = {
        "base": str(base),
        "interventions": [
            {"label": f"{trait}:{level}", "tuned": str(path)} for level, path in tuned.items()
        ],
        "strengths": [-1.0, *ALPHAS],
        "measures": [
            {
                "likelihood": {
                    "traits": [trait],
                    "statements": str(statements),
                    "question": QUESTION,
                }
            },
            {
                "interview": {
                    "traits": [trait],
                    "instrument": "builtin:eval/instruments/self_description.yaml",
                    "generation": {"max_new_tokens": 40, "temperature": 0.6, "samples": 4},
                    "judges": [{"classifier": {"statements": str(statements)}}],
                }
            },
            "divergence",
            {"guards": {"traits": [trait], "statements": str(statements)}},
        ],
    }
    return open_study(SweepRecipe.parse(recipe, origin="big5", folder=Path.cwd())).run(out / trait)


def rows_of(run: Run, trait: str) -> list[dict[str, object]]:
    """Return one row of the table per pole."""
    frame = run.readings().query("trait == @trait")
    value = frame.set_index(["measure", "intervention", "strength"])["value"]
    rows = []
    for level in ("high", "low"):
        label = f"{trait}:{level}"
        row: dict[str, object] = {"vector": label}
        for measure in ("likelihood", "interview"):
            at = {alpha: float(value[measure, label, alpha]) for alpha in [-1.0, *ALPHAS]}
            found = correlation(ALPHAS, [at[alpha] for alpha in ALPHAS])
            base = float(value[measure, BASE, 0.0])
            row |= {
                f"{measure} -1": at[-1.0],
                f"{measure} 0": base,
                f"{measure} 1": at[1.0],
                f"{measure} 2": at[2.0],
                f"{measure} spearman": found["spearman"],
                f"{measure} pearson": found["pearson"],
            }
            sign = Pole(trait, "high" if level == "high" else "low").sign
            row[f"{measure} crosses"] = sign * (at[-1.0] - base) < 0
            row[f"{measure} extrapolates"] = sign * (at[2.0] - at[1.0]) > 0
        rows.append(row)
    return rows


def main() -> None:
    """Run the experiment and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--statements", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/big5"))
    parser.add_argument("--traits", nargs="*", default=list(BIG_FIVE))
    given = parser.parse_args()
    base, statements, out = given.base.resolve(), given.statements.resolve(), given.out.resolve()
    runs = [sweep_trait(base, statements, trait, out) for trait in given.traits]
    rows = [
        row for trait, run in zip(given.traits, runs, strict=True) for row in rows_of(run, trait)
    ]
    save_figure(dose_response_figure(*runs), out, "dose_response")
    table = pd.DataFrame(rows)
    table.to_csv(out / "table.csv", index=False)
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
