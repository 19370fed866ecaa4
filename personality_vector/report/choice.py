"""The files of a choice: its record, tables and figure.

The figure shows what ranks the layers, and how far each can be turned up.
"""

import json
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from personality_vector.files import AtomicDirectory
from personality_vector.manifest import write_manifest
from personality_vector.report.figures import COLOURS, HOLLOW, canvas, line, save_figure
from personality_vector.study.choose.scan import Choice

_CHOSEN, _VERIFIED, _OTHER = COLOURS[0], "#9CC3DE", "#D9D9D9"


def save_choice(choice: Choice, out: Path, *, force: bool) -> None:
    """Write ``choice.json``, ``curve.csv``, ``layers.csv``, the figure and a manifest.

    The folder appears whole, or not at all.

    Args:
        choice: What to write.
        out: Must not exist, unless ``force``.
        force: Replace a result that this tool wrote.

    Raises:
        OutputExistsError: ``out`` exists.
    """
    record = choice.record() | {"made_from": choice.made_from}
    with AtomicDirectory(out, kind="choice", force=force) as partial:
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (partial / "choice.json").write_text(text, encoding="utf-8")
        for name, table in (("curve", choice.curve_table()), ("layers", choice.layer_table())):
            table.to_csv(partial / f"{name}.csv", index=False, float_format="%.9g")
        save_figure(_choice_figure(choice), partial, "choice")
        chosen = {key: record[key] for key in ("layer", "coefficients")}
        write_manifest(partial, "choice", {**choice.made_from, "choice": chosen})


def _choice_figure(choice: Choice) -> Figure:
    """Draw the evidence for each layer on the left, the scanned strengths on the right."""
    layers, curves, chosen = choice.layer_table(), choice.curve_table(), choice.layer
    figure = canvas(2, 2)
    (separates, shifts), (moves, coheres) = figure.subplots(2, 2)
    figure.set_size_inches(8.2, 5.4)
    aucs = [f"AUC\n{auc:.2f}" if len(layers) <= 8 else "" for auc in layers["auc"]]
    ranks = [
        f"#{rank}{' chosen' * (layer == chosen)}" if pd.notna(rank) else ""
        for layer, rank in zip(layers["layer"], layers["rank"], strict=True)
    ]
    _layers(separates, layers, "d_prime", aucs, chosen)
    _layers(moves, layers, "slope", ranks, chosen)
    _curves(shifts, curves, "shift", chosen)
    _curves(coheres, curves, "coherence", chosen)
    separates.margins(y=0.2)
    separates.set(ylabel="d' of the statements'\nprojections")
    moves.set(
        xlabel="layer (decoder block, numbered from 0)",
        ylabel="first-order effect (nats per\ntoken and residual norm)",
    )
    shifts.set(ylabel="shift of the probe\n(nats per token)")
    shifts.legend(title="layer", fontsize=7, title_fontsize=7)
    unit = choice.evidence.unit
    shifts.secondary_xaxis(
        "top", functions=(lambda share: share * unit, lambda coefficient: coefficient / unit)
    ).set(xlabel=f"coefficient at layer {chosen}")
    coheres.set(
        xlabel="strength (share of the residual norm; hollow: not usable)",
        ylabel="coherence",
        ylim=(0.0, 1.05),
    )
    floor, place = choice.floor, coheres.get_yaxis_transform()
    coheres.axhline(floor, color=COLOURS[1], linestyle="--", linewidth=1)
    coheres.text(0.5, floor, "floor", color=COLOURS[1], ha="center", va="bottom", transform=place)
    return figure


def _layers(axes: Axes, layers: pd.DataFrame, column: str, labels: list[str], chosen: int) -> None:
    colours = [
        _CHOSEN if layer == chosen else _VERIFIED if pd.notna(rank) else _OTHER
        for layer, rank in zip(layers["layer"], layers["rank"], strict=True)
    ]
    bars = axes.bar(layers["layer"], layers[column], color=colours, width=0.75)
    axes.axhline(0.0, color="grey", linewidth=0.8)
    axes.grid(visible=False, axis="x")
    axes.set(axisbelow=True, xticks=layers["layer"][:: 1 if len(layers) <= 16 else 4])
    axes.bar_label(bars, labels, fontsize=6, padding=1)


def _curves(axes: Axes, curves: pd.DataFrame, column: str, chosen: int) -> None:
    """Draw every verified layer through the unsteered model; what is not usable is hollow."""
    start = 1.0 if column == "coherence" else 0.0
    for index, (layer, found) in enumerate(curves.groupby("layer", sort=False)):
        whole = pd.concat([found, pd.DataFrame([{"share": 0.0, column: start, "usable": True}])])
        whole = whole.sort_values("share")
        is_usable = whole["usable"].astype(bool)
        # The second colour is the floor's.
        name, look = f"{layer}", line(index + 2) | {"zorder": 2, "alpha": 0.75}
        if layer == chosen:
            name, look = f"{layer} (chosen)", line(0) | {"zorder": 3}
            used = whole[is_usable]["share"]
            axes.axvspan(used.min(), used.max(), color=_CHOSEN, alpha=0.07, linewidth=0)
        axes.plot(whole["share"], whole[column], label=name, **look)
        axes.plot(whole[~is_usable]["share"], whole[~is_usable][column], **look | HOLLOW)
