"""Figures: dose and response, effect and cost. SVG for the report, PNG for everything else."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from personality_vector.study.design import BASE
from personality_vector.study.run import Run
from personality_vector.study.tables import (
    costs,
    labels_of,
    numbers_of,
    off_targets,
    on_grid,
    shifts,
)
from personality_vector.traits import Pole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_PAPER: dict[str, Any] = {"bbox_inches": "tight", "facecolor": "white"}
_METADATA = {".svg": {"Date": None}}  # so that the same results write the same bytes
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "text.parse_math": False,
    "svg.hashsalt": "personality-vector",
    "figure.dpi": 144,
}


def dose_response_figure(*runs: Run) -> "Figure":
    """Draw, per trait (column), every number that there is of it (row) against the strength.

    Lines are means over seeds. The dashed line is the unedited base. Bars are 95 % intervals of
    judged means; those of other numbers are over items that all points share, and are left out.
    Several runs stand side by side.
    """
    panels = [(run, trait) for run in runs for trait in run.readings()["trait"].unique() if trait]
    numbers = numbers_of(runs[0], of_traits=True)
    figure, axes = grid(len(numbers), len(panels))
    for column, (run, trait) in enumerate(panels):
        frame = on_grid(run, run.readings())
        for row, number in enumerate(numbers):
            is_it = (frame["measure"] == number.measure) & (frame["judge"] == number.judge)
            own, panel = frame[is_it & (frame["trait"] == trait)], axes[row][column]
            # Alpha, coefficient and grade of a prompt have different units.
            _dose(panel, own, labels_of(run), in_units=run["pole"] is None)
            if number.scale:
                margin = 0.025 * (number.scale[1] - number.scale[0])
                panel.set_ylim(number.scale[0] - margin, number.scale[1] + margin)
        axes[0][column].set_title(trait)
        unit = "alpha or coefficient" if run["pole"] is None else "share of its own grid"
        axes[-1][column].set_xlabel(f"strength ({unit})")
        if len(runs) > 1:
            axes[0][column].legend(fontsize=7)
    for row, number in enumerate(numbers):
        axes[row][0].set_ylabel(number.label)
    if len(runs) == 1:
        legend(figure, axes[0][0])
    return figure


def _dose(axes: "Axes", frame: pd.DataFrame, labels: Sequence[str], *, in_units: bool) -> None:
    base = frame[frame["intervention"] == BASE]
    if base["value"].notna().any():
        axes.axhline(float(base["value"].mean()), color="grey", linestyle="--", linewidth=1)
    for index, label in enumerate(labels):
        # Every curve passes through the base: strength 0 of any intervention.
        own = frame[(frame["intervention"] == label) & (frame["strength"] != 0.0)]
        curve = _over_seeds(pd.concat([own, base]))
        if not in_units:
            curve["strength"] /= curve["strength"].abs().max()
        is_judged = bool((frame["judge"] != "").any())
        axes.errorbar(
            curve["strength"],
            curve["value"],
            yerr=curve["half"] if is_judged else None,
            label=label,
            elinewidth=0.7,
            **line(index),
        )
        for point in curve[curve["unscored"] > 0].itertuples():
            axes.annotate(
                f"{point.unscored} unscored",
                (point.strength, point.value),
                xytext=(4, 6),
                textcoords="offset points",
                fontsize=6,
            )


def _over_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Return one row for each strength: mean value, half an interval, and all that is unscored."""
    scored = frame.dropna(subset=["value"]).assign(half=(frame["high"] - frame["low"]) / 2)
    by_strength = scored.groupby("strength", as_index=False)
    return by_strength.agg({"value": "mean", "half": "mean", "unscored": "sum"})


def pareto_figure(run: Run, pole: Pole) -> "Figure":
    """Draw what each intervention costs for its effect; nearer to the lower right is better.

    Effect: shift towards ``pole``. Costs: every number of no trait that should be low, and the mean
    absolute shift of the other traits. Each point carries its strength.
    """
    drawn = _costs(run, pole)
    figure, axes = grid(1, max(1, len(drawn)))
    for panel, (name, cost) in zip(axes[0], drawn.items(), strict=False):
        for index, (label, curve) in enumerate(shifts(run, pole).items()):
            points = [point for point in curve if point.shift > 0]
            values = [cost.get((label, point.strength), float("nan")) for point in points]
            # From the base, where both effect and cost are zero.
            outwards = [0.0, *(point.shift for point in points)]
            panel.plot(outwards, [0.0, *values], label=label, **line(index))
            for point, value in zip(points, values, strict=True):
                panel.annotate(
                    f"{point.strength:g}",
                    (point.shift, value),
                    (3, 3),
                    textcoords="offset points",
                    fontsize=6,
                    color=line(index)["color"],
                )
        panel.set(
            xlabel=f"shift of the {run['effect']} towards\n{pole} (nats per token)", ylabel=name
        )
    legend(figure, axes[0][0])
    return figure


def _costs(run: Run, pole: Pole) -> "dict[str, pd.Series[float]]":
    """Return what can be drawn as a cost, by the label of its axis: 0 must be the base's."""
    table = costs(run)
    found = {
        number.label: table[number.measure]
        for number in numbers_of(run, of_traits=False)
        if number.better == "low" and abs(table[number.measure].get((BASE, 0.0), 1.0)) < 1e-6
    }
    others = off_targets(run, pole)
    if not others.empty:
        unit = run["measures"][run["effect"]]["unit"]
        found[f"mean |shift| of the other traits\n({unit})"] = others
    return found


def cosine_figure(frame: pd.DataFrame, *, centred: bool = False) -> "Figure":
    """Draw cosines as a heat map with its numbers: blue below 0, red above, white at 0.

    Args:
        frame: Cosines in [-1, 1], with the names of rows and columns; NaN is left grey.
        centred: Whether the mean direction was removed, for the title.
    """
    rows, columns = frame.shape
    figure, ((axes,),) = grid(1, 1)
    figure.set_size_inches(0.5 * columns + 2.6, 0.34 * rows + 1.6)
    # Blue and red of one lightness are told apart with every kind of colour vision.
    image = axes.pcolormesh(
        frame.to_numpy(), cmap="RdBu_r", vmin=-1.0, vmax=1.0, edgecolors="white", linewidth=1
    )
    axes.set(facecolor="#D9D9D9", title="cosine, mean direction removed" if centred else "cosine")
    axes.set_xticks([x + 0.5 for x in range(columns)], frame.columns)
    axes.tick_params("x", rotation=40, rotation_mode="xtick")
    axes.set_yticks([y + 0.5 for y in range(rows)], frame.index)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.invert_yaxis()
    for (y, x), value in np.ndenumerate(frame.to_numpy()):
        # Dark cells need light figures.
        colour = "white" if abs(value) > 0.6 else "black"
        text = "-" if np.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")
        axes.text(x + 0.5, y + 0.5, text, color=colour, fontsize=7, ha="center", va="center")
    figure.colorbar(image, ax=axes, shrink=0.8, pad=0.02).outline.set_visible(False)
    return figure


def save_figure(figure: "Figure", folder: Path, name: str, *suffixes: str) -> None:
    """Write ``name.png`` and ``name.svg``, or only that of the two which is asked for."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in suffixes or (".png", ".svg"):
        figure.savefig(folder / f"{name}{suffix}", **_PAPER, metadata=_METADATA.get(suffix))


def svg_of(figure: "Figure") -> str:
    """Return a figure as an ``<svg>`` element to put into a page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", **_PAPER, metadata=_METADATA[".svg"])
    drawn = text.getvalue()
    return drawn[drawn.index("<svg") :]


def grid(rows: int, columns: int) -> tuple["Figure", list[list["Axes"]]]:
    """Return a figure in this project's style, and its panels, row by row."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams.update(_STYLE)  # type: ignore[arg-type]
    figure = Figure(figsize=(max(3.6 * columns, 4.2), 2.7 * rows + 0.5), layout="constrained")
    return figure, [list(row) for row in figure.subplots(rows, columns, squeeze=False)]


def legend(figure: "Figure", axes: "Axes") -> None:
    """Write the legend of one panel below all of them."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4) or 1)


def line(index: int) -> dict[str, Any]:
    """Return how the line number ``index`` looks: its colour, marker and width."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": _MARKERS[index % len(_MARKERS)],
        "linewidth": 1.4,
        "markersize": 3.5,
    }
