"""Figures of what lies along a direction: shifts of fine-tunes, and differences of their data."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from personality_vector.report.figures import COLOURS, canvas, legend, line, place_notes

_QUIET: dict[str, Any] = {"color": "grey", "linewidth": 0.8, "alpha": 0.7, "zorder": 1}
_BINS = 40


def shift_figure(table: pd.DataFrame, x_label: str, y_label: str) -> Figure:
    """Draw the score of each fine-tune against its shift, with the line of least squares.

    Args:
        table: One row for each fine-tune: ``model`` is written beside its point, where there is
            room; those of one ``kind`` have one look; ``shift`` and ``score`` are its place.
        x_label: Of the shift, with its unit.
        y_label: Of the score.
    """
    figure = canvas(1, 1)
    figure.set_size_inches(5.2, 4.2)
    axes = figure.subplots()
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.margins(0.2)  # for the names
    axes.axhline(0.0, linestyle="--", **_QUIET)
    axes.axvline(0.0, linestyle="--", **_QUIET)
    shifts, scores = (table[name].to_numpy(float) for name in ("shift", "score"))
    if len(set(shifts)) > 1:
        slope, start = np.polyfit(shifts, scores, 1)
        ends = np.array([shifts.min(), shifts.max()])
        axes.plot(ends, slope * ends + start, **_QUIET)
    for index, (kind, own) in enumerate(table.groupby("kind", sort=True)):
        look = line(index) | {"linestyle": "", "markersize": 5}
        # Each point by itself, so that a name may lie between two of them.
        for row in own.itertuples():
            axes.plot(row.shift, row.score, label=kind, **look)
            axes.annotate(
                row.model, (row.shift, row.score), (3, 3), textcoords="offset points", fontsize=7
            )
    legend(figure)
    place_notes(figure)
    return figure


def difference_figure(
    differences: Sequence[float], x_label: str, limit: float | None = None
) -> Figure:
    """Draw a histogram of projection differences.

    Args:
        differences: NaN is left out.
        x_label: Of the difference, with its unit.
        limit: Where the line is above which chats are dropped.
    """
    known = [value for value in differences if not math.isnan(value)]
    figure = canvas(1, 1)
    figure.set_size_inches(5.2, 3.4)
    axes = figure.subplots()
    axes.set(xlabel=x_label, ylabel="chats")
    axes.hist(known, bins=_BINS, color=COLOURS[0], edgecolor="white", linewidth=0.4)
    if known:
        mean = math.fsum(known) / len(known)
        axes.axvline(mean, color=COLOURS[6], linewidth=1.2, label=f"mean {mean:.3g}")
    if limit is not None:
        axes.axvline(limit, color=COLOURS[1], linestyle="--", label=f"dropped above {limit:g}")
    legend(figure)
    return figure
