"""Heat maps: cosines of vectors, how far measures agree, and how the words of replies change."""

import textwrap
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from personality_vector.report.figures import canvas

_LONGEST, _IN_A_LETTER = 48, 0.075
"""Letters of a line of a name, and the inches of each."""
_MOST_ROWS = 25
_LIGHT, _DARK = "#fefefe", "#111111"
"""Colours of figures on a cell, which a page leaves as they are."""


def cosine_figure(frame: pd.DataFrame, *, centred: bool = False) -> Figure:
    """Draw cosines as a heat map with its numbers: blue below 0, red above, white at 0.

    Args:
        frame: Cosines in [-1, 1], with the names of rows and columns; NaN is left grey.
        centred: Whether the mean direction was removed, for the title.
    """
    figure, image = _heat_map(frame, "cosine, mean direction removed" if centred else "cosine")
    figure.colorbar(image, ax=figure.axes, shrink=0.8, pad=0.02).outline.set_visible(False)
    return figure


def agreement_figure(table: pd.DataFrame) -> Figure:
    """Draw Spearman's correlation of every two measures for each trait, as a heat map.

    Args:
        table: As :func:`study.profiles.agreement_of_measures` returns it, with at least one row.
    """
    pairs = table.assign(pair=table["measure"] + " and " + table["other"])
    frame = pairs.pivot_table(
        index="pair", columns="trait", values="spearman", sort=False, dropna=False
    )
    return _heat_map(frame, "Spearman's correlation")[0]


def language_figure(frame: pd.DataFrame) -> Figure:
    """Draw how much more often words of each category are used than by the base, as a heat map.

    Args:
        frame: As :func:`study.profiles.language` returns it; its first rows are drawn.
    """
    shown = frame.head(_MOST_ROWS)
    shown = shown.set_axis([f"{label} {strength:g}" for label, strength in shown], axis=1)
    most = max(1.0, float(np.nanmax(shown.abs().to_numpy())))
    return _heat_map(shown, "words per hundred, minus the base's", most)[0]


def _heat_map(frame: pd.DataFrame, title: str, most: float = 1.0) -> tuple[Figure, Any]:
    """Return numbers in ``[-most, most]`` as a figure, and what a colour bar is made from."""
    rows, columns = frame.shape
    figure = canvas(1, 1)
    names, headings = ([textwrap.fill(str(n), _LONGEST) for n in of] for of in frame.axes)
    room = [_IN_A_LETTER * max(map(len, "\n".join(of).split("\n"))) for of in (names, headings)]
    lines = sum(name.count("\n") for name in names)
    width = max(room[0] + 1.0, 2.6)
    height = max(0.14 * lines + 0.8 * room[1] + 0.7, 1.6)
    figure.set_size_inches(0.5 * columns + width, 0.34 * rows + height)
    axes = figure.subplots()
    # Blue and red of one lightness are told apart with every kind of colour vision.
    image = axes.pcolormesh(
        frame.to_numpy(), cmap="RdBu_r", vmin=-most, vmax=most, edgecolors="white", linewidth=1
    )
    axes.set(
        facecolor="#D9D9D9",
        title=title,
        xticks=[x + 0.5 for x in range(columns)],
        xticklabels=headings,
        yticks=[y + 0.5 for y in range(rows)],
        yticklabels=names,
    )
    axes.tick_params("x", rotation=40, rotation_mode="xtick")
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.invert_yaxis()
    for (y, x), value in np.ndenumerate(frame.to_numpy()):
        text = "-" if np.isnan(value) else f"{value:.2f}".replace("-0.00", "0.00")
        # Dark cells need light figures, also in a dark page, where ink and paper change places.
        colour = _LIGHT if abs(value) > 0.6 * most else _DARK
        axes.text(x + 0.5, y + 0.5, text, color=colour, fontsize=7, ha="center", va="center")
    return figure, image
