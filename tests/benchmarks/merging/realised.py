"""What is left of alpha after rounding to bfloat16, to the nearest and stochastically.

    python tests/benchmarks/merging/realised.py --out runs/bench/realised
    python tests/benchmarks/merging/realised.py --base BASE --tuned TUNED --out runs/bench/mine

Without ``--tuned``: a synthetic fine-tune, weights of standard deviation 0.02 in bfloat16 and a
delta of ``--delta-std`` in float32. Realised alpha is the projection of the written change on the
delta; it equals alpha where rounding loses nothing.
"""

import argparse
import tempfile
from pathlib import Path

import pandas as pd
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file

from personality_vector import Delta, Output, merge
from personality_vector.numeric.random import generator_for
from personality_vector.report.figures import save_figure

ALPHAS = [round(0.1 * step, 1) for step in range(1, 11)]
ROUNDINGS = ("nearest", "stochastic")
COLOURS = {"nearest": "#D55E00", "stochastic": "#0072B2"}


def synthetic(folder: Path, delta_std: float) -> tuple[Path, Path]:
    """Write a base of a million weights in bfloat16, and a fine-tune in float32."""
    generator = generator_for(0, "realised")
    weights = torch.empty(1024, 1024).normal_(0.0, 0.02, generator=generator).bfloat16()
    delta = torch.empty(1024, 1024).normal_(0.0, delta_std, generator=generator)
    for name, tensor in {"base": weights, "tuned": weights.float() + delta}.items():
        (folder / name).mkdir()
        save_file({"weight": tensor}, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text("{}")
    return folder / "base", folder / "tuned"


def measure(base: Path, tuned: Path, folder: Path) -> pd.DataFrame:
    """Return a row for each alpha: what each rounding makes of it."""
    delta = Delta.between(base, tuned)
    rows = []
    for alpha in ALPHAS:
        row = {"alpha": alpha}
        for rounding in ROUNDINGS:
            output = Output("bfloat16", rounding)
            report = merge(base, [(delta, alpha)], out=folder / "out", output=output, force=True)
            row[rounding] = alpha * (report.realised or 0.0)
        rows.append(row)
    return pd.DataFrame(rows)


def figure_of(table: pd.DataFrame, title: str) -> Figure:
    """Draw realised against nominal alpha."""
    figure = Figure(figsize=(4.2, 3.2), layout="constrained", dpi=144)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="no loss")
    for rounding in ROUNDINGS:
        axes.plot(
            table["alpha"], table[rounding], marker="o", color=COLOURS[rounding], label=rounding
        )
    axes.set(xlabel="alpha", ylabel="realised alpha", title=title)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


def main() -> None:
    """Measure, print the table, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--tuned", type=Path)
    parser.add_argument("--delta-std", type=float, default=1e-4)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/realised"))
    given = parser.parse_args()
    if (given.base is None) != (given.tuned is None):
        parser.error("--base and --tuned go together")
    given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.out) as folder:
        if given.base is None:
            base, tuned = synthetic(Path(folder), given.delta_std)
            title = f"weights ~ 0.02, delta ~ {given.delta_std:g}"
        else:
            base, tuned, title = given.base, given.tuned, given.tuned.name
        table = measure(base, tuned, Path(folder))
    table.to_csv(given.out / "realised.csv", index=False)
    save_figure(figure_of(table, title), given.out, "realised")
    print(table.round(4).to_string(index=False))


if __name__ == "__main__":
    main()
