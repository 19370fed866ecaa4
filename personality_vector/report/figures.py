"""Figures: dose and response, effect and cost. SVG for the report, PNG for everything else."""

import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from personality_vector.files import write_file
from personality_vector.study.comparison import Comparison
from personality_vector.study.design import BASE
from personality_vector.study.fronts import measured_points
from personality_vector.study.numbers import Number, numbers_of, on_grid
from personality_vector.study.poles import joined
from personality_vector.study.run import Run

# Okabe and Ito's palette: told apart with every kind of colour vision. More lines than
# these cannot be told apart at a glance, and become panels of their own.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
HOLLOW: dict[str, Any] = {"linestyle": "", "markerfacecolor": "white", "zorder": 4}
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_BEHIND: dict[str, Any] = {"color": "#B0B0B0", "linewidth": 0.8, "alpha": 0.5, "zorder": 1}
_COLUMNS, _LABELLED, _WIDTH = 5, 3, 11.0
"""Most panels side by side, most where each has an axis label, and their width in inches."""
_PAPER: dict[str, Any] = {"bbox_inches": "tight", "facecolor": "white"}
MARK = "personality-vector"
# No date, so that the same results write the same bytes.
_METADATA = {".svg": {"Date": None, "Creator": MARK}, ".png": {"Software": MARK}}
_INK = {"#000000": "currentColor", "#ffffff": "canvas"}
"""Colours of a figure on paper, and what they are in a page, which may be light or dark."""
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.labelsize": 8,
    "axes.titlesize": 9,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "text.parse_math": False,
    "svg.hashsalt": "personality-vector",
    "figure.dpi": 144,
    "figure.constrained_layout.h_pad": 0.07,
}


def dose_response_figure(*runs: Run) -> Figure:
    """Draw every number that there is of a trait, or that is matched, against the strength.

    A panel shows a trait, with a line for each intervention. Lines are means over seeds; the dashed
    line is the unedited base; some answers of a hollow point are unscored. Bars are 95 % intervals
    of judged means; those of other numbers are over items that all points share, and are left out.
    Several runs stand side by side.
    """
    # Alpha, coefficient and grade of a prompt have different units.
    in_units = all(run["pole"] is None for run in runs)
    numbers = {(one.measure, one.judge): one for one in _numbers(runs[0])}
    found = [_of_numbers(on_grid(run, run.readings()), numbers) for run in runs]
    table = _doses(runs, found, in_units=in_units)
    keys = zip(table["measure"], table["judge"], strict=True)
    table["number"] = [numbers[key].label for key in keys]
    silent = _doses(runs, list(map(_shares_unscored, found)), in_units=in_units)
    silent["number"] = silent["measure"] + " by " + silent["judge"] + "\n(share unscored)"
    table = pd.concat([table, silent], ignore_index=True)
    scales = {one.label: one.scale for one in numbers.values()}
    scales |= dict.fromkeys(silent["number"], (0.0, 1.0))
    unit = "alpha or coefficient" if in_units else "share of its own grid"
    return _drawn(table, f"strength ({unit})", scales)


def _numbers(run: Run) -> list[Number]:
    costs = Comparison(run).axes if run["pole"] is not None else ()
    others = [number for number in numbers_of(run, of_traits=False) if number.name in costs]
    return numbers_of(run, of_traits=True) + others


def _of_numbers(readings: pd.DataFrame, numbers: Mapping[tuple[str, str], Number]) -> pd.DataFrame:
    keys = zip(readings["measure"], readings["judge"], strict=True)
    return readings[np.array([key in numbers for key in keys], dtype=bool)]


def _shares_unscored(readings: pd.DataFrame) -> pd.DataFrame:
    """Return, as readings, the share of answers that each judge leaves unscored, if it does any."""
    judged = readings[readings["judge"] != ""]
    counts = judged.groupby(["measure", "judge"])["unscored"].transform("sum")
    shares = judged["unscored"] / (judged["n"] + judged["unscored"])
    return judged.assign(value=shares, low=math.nan, high=math.nan, unscored=0)[counts > 0]


def _doses(runs: Sequence[Run], found: Sequence[pd.DataFrame], *, in_units: bool) -> pd.DataFrame:
    """Return one row per point of a curve of every run, whose readings are given."""
    points = [
        _points(run, frame, in_units=in_units) for run, frame in zip(runs, found, strict=True)
    ]
    return pd.concat(points, ignore_index=True)


def _points(run: Run, readings: pd.DataFrame, *, in_units: bool) -> pd.DataFrame:
    """Return one row per point of a curve; it passes through the base, if that is strength 0."""
    poles = run["poles"] or {}
    frame = joined(readings.dropna(subset="value"), poles)
    base, labels = frame[frame["intervention"] == BASE], frame["intervention"].unique()
    at_base = [
        label
        for label in labels
        if label != BASE and poles.get(label, {}).get("is_base_at_zero", True)
    ]
    is_base = (frame["strength"] == 0.0) & frame["intervention"].isin([BASE, *at_base])
    whole = pd.concat([frame[~is_base], *(base.assign(intervention=label) for label in at_base)])
    whole["half"] = ((whole["high"] - whole["low"]) / 2).where(whole["judge"] != "")
    keys = ["measure", "judge", "trait", "intervention"]
    points = whole.groupby([*keys, "strength"], sort=False, as_index=False).agg(
        {"value": "mean", "half": "mean", "unscored": "sum"}
    )
    values = base.groupby(keys[:3])["value"].mean()
    points["base"] = values.reindex(pd.MultiIndex.from_frame(points[keys[:3]])).to_numpy()
    counts = zip(points["judge"], points["unscored"], strict=True)
    # Of judged answers, the share that is unscored has a curve of its own.
    points["note"] = [f"{n} unscored" * (n > 0 and not judge) for judge, n in counts]
    if not in_units:
        points["strength"] /= points.groupby(keys)["strength"].transform(lambda s: s.abs().max())
    return points.assign(at=points["strength"]).rename(
        columns={"trait": "panel", "intervention": "line", "strength": "x", "value": "y"}
    )


def pareto_figure(comparison: Comparison, effect: str) -> Figure:
    """Draw what each intervention costs for its effect; nearer to the lower right is better.

    Effect: shift of a number towards the pole. Costs: every number of no trait that is matched, or
    that should be low and is 0 for the base, and the mean absolute shift of the other traits.
    Points carry their strength, where there is room; those that were matched are hollow.
    """
    matched = set(comparison.matches[["intervention", "strength"]].itertuples(index=False))
    rows = [
        (
            cost,
            "",
            label,
            shift,
            height,
            f"{strength:.3g}",
            abs(strength),
            int((label, strength) in matched),
        )
        for cost, points in _costs(comparison, effect).items()
        for label, own in points.items()
        for strength, (height, shift) in own.items()
    ]
    # From the base, where both effect and cost are zero.
    starts = [(*row, 0.0, 0.0, "", 0.0, 0) for row in dict.fromkeys(row[:3] for row in rows)]
    names = ["number", "panel", "line", "x", "y", "note", "at", "unscored"]
    table = pd.DataFrame(starts + rows, columns=names)
    unit = comparison.effects[effect].unit
    table = table.assign(half=math.nan, base=math.nan)
    return _drawn(table, f"shift of the {effect} towards {comparison.pole} ({unit})", {})


def _costs(comparison: Comparison, effect: str) -> dict[str, Any]:
    """Return what can be drawn as a cost, by the label of its axis: 0 must be the base's."""
    found = {
        number.label: measured_points(comparison, effect, comparison.column(name))
        for name, number in comparison.costs.items()
        if name in comparison.axes or (number.better == "low" and comparison.is_zero(number))
    }
    unit = comparison.effects[comparison.effect].unit
    others = measured_points(comparison, effect, comparison.off_target)
    if others:
        found[f"mean |shift| of the other traits\n({unit})"] = others
    return found


def save_figure(figure: Figure, folder: Path, name: str, *suffixes: str) -> None:
    """Write ``name.png`` and ``name.svg``, or only that of the two which is asked for."""
    for suffix in suffixes or (".png", ".svg"):
        how = {**_PAPER, "format": suffix[1:], "metadata": _METADATA.get(suffix)}
        write_file(folder / f"{name}{suffix}", partial(figure.savefig, **how))


def inlined(svg: Path) -> str:
    """Return a saved figure as an element of a page, in the colours of the page.

    Its styles become attributes, since the page allows only the styles that it names. Its comments,
    which hold the labels, and its metadata are left out.
    """
    hidden = r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>"
    text = re.sub(hidden, "", svg.read_text(encoding="utf-8"), flags=re.DOTALL)
    text = re.sub(
        r'style="(.*?)"', lambda m: re.sub(r"([\w-]+): ([^;]*);?", r'\1="\2"', m[1]), text
    )
    for paper, page in _INK.items():
        text = text.replace(f'"{paper}"', f'"{page}"')
    return text[text.index("<svg") :]


def canvas(rows: int, columns: int) -> Figure:
    """Return a figure in this project's style, of a size for so many panels."""
    mpl.rcParams.update(_STYLE)  # type: ignore[arg-type]
    width = min(3.6, _WIDTH / columns)
    height = (0.45 * width + 1.1) * rows + 0.5
    return Figure(figsize=(max(width * columns, 4.2), height), layout="constrained")


def _drawn(table: pd.DataFrame, x_label: str, scales: Mapping[str, Any]) -> Figure:
    """Draw a row of panels for each number, or one row for all where each has a single panel.

    Where the lines of a panel are more than can be told apart, panels and lines change places, and
    the rest stands in grey behind a panel of one line.

    Args:
        table: One row per point: ``number, panel, line, x, y``, where it is on the line (``at``),
            half an interval (``half``), the height of the ``base``, ``unscored``, and a ``note``.
        x_label: Of all panels.
        scales: Number to the ends of its scale, where there is one.
    """
    is_many = _most_lines(table) > len(COLOURS)
    if is_many:
        table = table.rename(columns={"panel": "line", "line": "panel"})
    if _most_lines(table) > len(COLOURS):
        table = table.assign(panel=table["panel"] + ", " + table["line"], line="")
    looks = {name: line(index) for index, name in enumerate(table["line"].unique())}
    blocks = [
        (n, list(of.groupby("panel", sort=False))) for n, of in table.groupby("number", sort=False)
    ]
    longest = max([len(panels) for _, panels in blocks], default=0)
    count = longest if longest > 1 else max(len(blocks), 1)
    columns = math.ceil(count / math.ceil(count / (_COLUMNS if longest > 1 else _LABELLED)))
    places = math.ceil(longest / columns) * columns if longest > 1 else 1
    figure = canvas(rows := math.ceil(len(blocks) * places / columns) or 1, columns)
    cells, anchor = figure.add_gridspec(rows, columns), None
    for n, (number, panels) in enumerate(blocks):
        first, label = None, "\n".join(textwrap.fill(text, 26) for text in number.split("\n"))
        for index, (title, own) in enumerate(panels):
            axes = figure.add_subplot(
                cells[divmod(n * places + index, columns)], sharex=anchor, sharey=first
            )
            anchor, first = anchor or axes, first or axes
            axes.set(title=textwrap.fill(title, 30), ylabel="" if index % columns else label)
            if is_many and own["line"].nunique() == 1:
                for _, other in panels[:index] + panels[index + 1 :]:
                    axes.plot(other["x"], other["y"], **_BEHIND)
            _draw(axes, own, looks)
        if first and scales.get(number):
            low, high = scales[number]
            first.set_ylim(low - 0.025 * (high - low), high + 0.025 * (high - low))
    figure.supxlabel(x_label, fontsize=9)
    legend(figure)
    place_notes(figure)
    return figure


def _most_lines(table: pd.DataFrame) -> int:
    return int(table.groupby(["number", "panel"])["line"].nunique().max()) if len(table) else 0


def _draw(axes: Axes, table: pd.DataFrame, looks: Mapping[str, dict[str, Any]]) -> None:
    for name, points in table.groupby("line", sort=False):
        curve = points.sort_values("at")
        error = curve["half"] if curve["half"].notna().any() else None
        axes.errorbar(curve["x"], curve["y"], error, label=name, elinewidth=0.7, **looks[name])
        hollow = curve[curve["unscored"] > 0]
        axes.plot(hollow["x"], hollow["y"], **looks[name] | HOLLOW)
    for base, of in table.groupby("base"):
        colour = looks[of["line"].iloc[0]]["color"] if table["base"].nunique() > 1 else "grey"
        axes.axhline(base, color=colour, linestyle="--", linewidth=0.8, alpha=0.7)
    # The furthest first: near the base, notes give way.
    for point in table[table["note"] != ""].sort_values("x", key=abs, ascending=False).itertuples():
        axes.annotate(
            point.note, (point.x, point.y), (3, 3), textcoords="offset points", fontsize=7
        )


def legend(figure: Figure) -> None:
    """Write one legend above all panels, or one into each where it would be too long."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    if len(handles) > len(COLOURS):
        for axes in figure.axes:
            axes.legend(fontsize=7)
    elif handles:
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside upper left",
            ncols=min(max(110 // (6 + max(map(len, handles))), 1), 4),
        )


def place_notes(figure: Figure) -> None:
    """Move each note to where it lies over no curve and no earlier note, or hide it."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it has done its work, and is slow
    for axes in figure.axes:
        curves = [one.get_transform().transform_path(one.get_path()) for one in axes.lines]
        kept: list[Any] = []
        for note in axes.texts:
            # A curve that rises leaves room on its upper left.
            for x, y in ((-3, 3), (3, -3), (3, 3), (-3, -3)):
                sides = {"ha": "left" if x > 0 else "right", "va": "bottom" if y > 0 else "top"}
                note.set(visible=True, position=(x, y), **sides)
                box = note.get_window_extent()
                is_over = any(curve.intersects_bbox(box, filled=False) for curve in curves)
                is_over |= box.y0 < axes.bbox.y0 or box.x1 > axes.bbox.x1
                note.set_visible(not is_over and not box.count_overlaps(kept))
                if note.get_visible():
                    kept.append(box)
                    break


def line(index: int) -> dict[str, Any]:
    """Return the look of line number ``index``: 49 differ in colour or marker, neighbours in both.

    >>> len({(line(n)["color"], line(n)["marker"]) for n in range(49)})
    49
    """
    round_, colour = divmod(index, len(COLOURS))
    return {
        "color": COLOURS[colour],
        "marker": _MARKERS[(colour + round_) % len(_MARKERS)],
        "linewidth": 1.4,
        "markersize": 3.5,
    }
