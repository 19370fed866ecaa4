"""The answer to the question that a run asks, as the numbers that a sentence needs."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from personality_vector.report.tables import text_of
from personality_vector.study.run import Run
from personality_vector.study.tables import (
    DOSES,
    MATCHED,
    Number,
    labels_of,
    numbers_of,
    short_names,
)

_NEAR = 0.1
"""Of the target: what a shift may miss it by without a word."""


def summary_of(run: Run, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return the numbers of the answer, for ``summary.html.jinja``, from the tables of a run."""
    if run["pole"] is not None:
        return _compared(run, tables[MATCHED])
    numbers = numbers_of(run, of_traits=True) or numbers_of(run, of_traits=False)
    # What follows a pole comes first.
    numbers = sorted(numbers, key=lambda one: one.better != "towards_pole")
    if labels_of(run):
        return _followed(labels_of(run), tables.get(DOSES, pd.DataFrame()), numbers)
    means = {one: _of(run.readings(), one).groupby("trait", sort=False) for one in numbers}
    return {
        "measured": {
            one: found[["value", "low", "high"]].mean().reset_index().to_dict("records")
            for one, found in means.items()
        }
    }


def _of(table: pd.DataFrame, number: Number) -> pd.DataFrame:
    return table[(table["measure"] == number.measure) & (table["judge"] == number.judge)]


def _followed(labels: list[str], table: pd.DataFrame, numbers: list[Number]) -> dict[str, Any]:
    """Return what each intervention moves most, the strongest first, and whether numbers agree."""
    if table.empty:
        return {"followed": [], "unclear": labels}
    clear = _of(table, numbers[0]).query("ci_low * ci_high > 0")
    clear = clear.sort_values("slope", key=abs, ascending=False, kind="stable")
    clear = clear.drop_duplicates("intervention")
    pairs = {
        one: clear.merge(_of(table, one), on=["intervention", "trait"])
        for one in numbers[1:]
        if one.better == numbers[0].better
    }
    return {
        "number": numbers[0],
        "followed": clear.to_dict("records"),
        "agreeing": {
            one: (int((found["slope_x"] * found["slope_y"] > 0).sum()), len(found))
            for one, found in pairs.items()
        },
        "unclear": [label for label in labels if label not in set(clear["intervention"])],
    }


def _compared(run: Run, table: pd.DataFrame) -> dict[str, Any]:
    """Return the costs at that target which most interventions reach, the best first."""
    found = table if table.empty else table.dropna(subset="strength")
    if found.empty:
        return {"matched": {}}
    sizes = found.groupby("target").size()
    target = sizes[sizes == sizes.max()].index.max()
    rows = found[found["target"] == target].set_index("intervention")
    numbers = numbers_of(run, of_traits=False)
    short = short_names([one.measure for one in numbers])
    # The first number of each measure stands for it.
    firsts = {one.measure.partition(".")[0]: one for one in reversed(numbers)}
    columns = [("the mean |shift| of the other traits", "off_target", "low")] + [
        (one.name, short[one.measure], one.better)
        for one in firsts.values()
        if one.better in ("low", "high")
    ]
    return {
        "target": target,
        "unit": run["measures"][run["effect"]]["unit"],
        "matched": rows["shift"].to_dict(),
        "costs": {
            name: _ranked(rows[column].dropna(), better)
            for name, column, better in columns
            if rows[column].notna().sum() > 1
        },
        "inexact": rows[abs(rows["shift"] - target) > _NEAR * target]["shift"].to_dict(),
        "beyond": table.set_index("intervention")["reach"].drop(rows.index).to_dict(),
    }


def _ranked(costs: "pd.Series[float]", better: str) -> tuple[str, bool, dict[str, float]]:
    """Return costs from the best one on, and before them whether two are level at the top."""
    ordered = costs.sort_values(ascending=better == "low", kind="stable")
    is_level = text_of(ordered.iloc[0]) == text_of(ordered.iloc[1])
    return better, is_level, ordered.to_dict()
