"""Radar: the profile of traits of the base, of interventions at their ends, and of people."""

import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from personality_vector.report.figures import canvas, legend, line
from personality_vector.study.design import BASE
from personality_vector.study.numbers import Number
from personality_vector.study.profiles import profiled, profiles
from personality_vector.study.run import Run
from personality_vector.traits import BIG_FIVE

_LEAST_TRAITS, _COLUMNS = 3, 4
_BASE: dict[str, Any] = {"color": "grey", "linewidth": 1.0, "linestyle": "--", "zorder": 1}
_NORM: dict[str, Any] = {"color": "grey", "alpha": 0.18, "linewidth": 0, "zorder": 0}
_ENDS = {"lowest strength": line(1), "highest strength": line(0)}


def radar_figure(run: Run) -> Figure:
    """Draw each number that has a scale and at least three traits, one panel per intervention.

    An axis is a trait, from the lower end of the scale in the middle to the upper end. The base is
    dashed; beside it are the lowest and the highest strength of the grid. The grey band is the
    norm, one standard deviation to both sides of the mean of people, where the questionnaire has
    one.
    """
    table = profiles(run).dropna(subset="value")
    panels = [panel for number in profiled(run) for panel in _panels(number, table)]
    columns = min(max(len(panels), 1), _COLUMNS)
    rows = math.ceil(len(panels) / columns) or 1
    figure = canvas(rows, columns)
    figure.set_size_inches(2.9 * columns + 0.4, 2.9 * rows + 0.5)
    for index, (title, number, own) in enumerate(panels):
        axes: Any = figure.add_subplot(rows, columns, index + 1, projection="polar")
        norms = run["measures"][number.measure].get("norms", {}).get("traits", {})
        axes.set(title="\n".join(textwrap.fill(text, 32) for text in title.split("\n")))
        assert number.scale is not None
        _draw(axes, number.scale, own, norms)
    legend(figure)
    return figure


def _panels(number: Number, table: pd.DataFrame) -> Iterator[tuple[str, Number, pd.DataFrame]]:
    """Yield the title of each panel of a number, and its rows, those of the base included."""
    own = table[table["number"] == number.name]
    if number.scale is None or own["trait"].nunique() < _LEAST_TRAITS:
        return
    is_base = own["intervention"] == BASE
    labels = list(own[~is_base]["intervention"].unique())
    for label in labels or [BASE]:
        rows = own[is_base | (own["intervention"] == label)]
        strengths = own[own["intervention"] == label]["strength"]
        ends = dict.fromkeys(f"{end:g}" for end in (strengths.min(), strengths.max()))
        at = f" at {' to '.join(ends)}" if labels else ""
        yield f"{number.name}\n{label}{at}", number, rows


def _draw(
    axes: Any, scale: tuple[float, float], table: pd.DataFrame, norms: Mapping[str, Any]
) -> None:
    known = list(dict.fromkeys(table["trait"]))
    traits = [t for t in BIG_FIVE if t in known] + [t for t in known if t not in BIG_FIVE]
    angles = _closed([2 * math.pi * index / len(traits) for index in range(len(traits))])
    low, high = scale
    axes.set_theta_offset(math.pi / 2)
    axes.set(
        ylim=scale,
        xticks=angles[:-1],
        yticks=[low + (high - low) * part for part in (0.25, 0.5, 0.75)],
    )
    axes.set_xticklabels([trait[:13] for trait in traits], fontsize=7)
    axes.tick_params("y", labelsize=5)
    if all(trait in norms for trait in traits):
        band = [
            _closed([max(low, min(high, norms[t][0] + side * norms[t][1])) for t in traits])
            for side in (-1, 1)
        ]
        axes.fill_between(angles, *band, label="people, mean and SD", **_NORM)
    for name, look, values in _lines(table):
        heights = _closed([values.get(trait, math.nan) for trait in traits])
        axes.plot(angles, heights, label=name, **look)


def _lines(table: pd.DataFrame) -> Iterator[tuple[str, dict[str, Any], "pd.Series[float]"]]:
    """Yield the name, the look and the values by trait of each line of a panel."""
    is_base = table["intervention"] == BASE
    base, own = table[is_base], table[~is_base]
    yield "base", _BASE, base.set_index("trait")["value"]
    ends = (own["strength"].min(), own["strength"].max())
    for (name, look), strength in zip(_ENDS.items(), ends, strict=True):
        if strength != 0.0 and not math.isnan(strength) and (ends[0] != ends[1] or "high" in name):
            yield name, look, own[own["strength"] == strength].set_index("trait")["value"]


def _closed(values: Sequence[float]) -> list[float]:
    return [*values, values[0]]
