"""Profiles: what the measures of a run say of every trait, and whether they agree."""

from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from personality_vector.numeric.statistics import correlation
from personality_vector.study.design import BASE
from personality_vector.study.numbers import Number, numbers_of, on_grid
from personality_vector.study.run import Run

_POINT = ["intervention", "strength"]
_LEAST_POINTS = 3
PER_HUNDRED = "per hundred words"
"""The unit of a measure that counts words by category."""


def agreement_of_measures(run: Run) -> pd.DataFrame:
    """Return one row per trait and pair of measures: whether they order the points alike.

    A point is the base or a strength of the grid, at the mean over seeds. Columns: ``trait,
    measure, other, n`` (points that both have), ``spearman, pearson, ci_low, ci_high`` (95 %, of
    Pearson), ``same_way`` (share of the points that both move to the same side of the base), and
    ``finding``: they move ``together`` or ``opposite`` if the interval leaves out 0, and otherwise
    that is ``not shown``; it does not say how far either moves. Judges of one
    measure are compared by :func:`study.scores.agreement`, answer by answer. Nothing is ever
    averaged over measures.
    """
    rows: list[dict[str, Any]] = []
    for trait, table in profiles(run).groupby("trait", sort=False):
        wide = table.pivot_table(index=_POINT, columns="number", values="value")
        owners = dict(zip(table["number"], table["measure"], strict=True))
        ordered = [name for name in dict.fromkeys(table["number"]) if name in wide]
        for one, other in combinations(ordered, 2):
            both = wide[[one, other]].dropna()
            if owners[one] != owners[other] and len(both) >= _LEAST_POINTS:
                rows.append({"trait": trait, "measure": one, "other": other} | _agreement(both))
    return pd.DataFrame(rows)


def _agreement(both: pd.DataFrame) -> dict[str, Any]:
    one, other = (both[name] for name in both)
    found = correlation(one.tolist(), other.tolist())
    low, high = found["ci_low"], found["ci_high"]
    finding = "together" if low > 0 else "opposite" if high < 0 else "not shown"
    row = {"n": len(both), **{key: found[key] for key in ("spearman", "pearson")}}
    moved = both - both.loc[(BASE, 0.0)] if (BASE, 0.0) in both.index else both.iloc[:0]
    moved = moved.drop(index=(BASE, 0.0), errors="ignore")
    same_way = float((moved.iloc[:, 0] * moved.iloc[:, 1] > 0).mean())
    return row | {"ci_low": low, "ci_high": high, "same_way": same_way, "finding": finding}


def profiles(run: Run) -> pd.DataFrame:
    """Return the numbers of traits, by point of the grid and trait, means over seeds.

    Columns: ``number, measure, trait, intervention, strength, value``. The parts of a number, such
    as its facets, are left out.
    """
    shown = on_grid(run, run.readings()).query("trait != ''")
    numbers = {(one.measure, one.judge): one for one in profiled(run)}
    keys = zip(shown["measure"], shown["judge"], strict=True)
    named = shown.assign(number=[numbers[key].name if key in numbers else "" for key in keys])
    groups = ["number", "measure", "trait", *_POINT]
    return named[named["number"] != ""].groupby(groups, sort=False)["value"].mean().reset_index()


def profiled(run: Run) -> list[Number]:
    """Return the numbers that a profile of traits is made of."""
    measures = run["measures"]
    return [one for one in numbers_of(run, of_traits=True) if one.measure in measures]


def language(run: Run) -> pd.DataFrame:
    """Return one row per category of words and one column per point, as differences from the base.

    They are of the measures whose unit is "per hundred words", at the strengths of the grid, means
    over seeds. The categories that move most come first.
    """
    measures, units = run["measures"], run.units()
    names = [name for name, one in measures.items() if one["unit"] == PER_HUNDRED]
    found = on_grid(run, run.readings()).query("trait == ''")
    is_own = [m.rpartition(".")[0] in names and m not in units for m in found["measure"]]
    own = found[np.array(is_own, dtype=bool)]  # a list without elements picks columns
    wide = own.pivot_table(index="measure", columns=_POINT, values="value", sort=False)
    if (BASE, 0.0) not in wide:
        return pd.DataFrame()
    moved = wide.sub(wide[BASE, 0.0], axis=0).drop(columns=(BASE, 0.0)).dropna(how="all")
    order = moved.abs().max(axis=1).sort_values(ascending=False, kind="stable").index
    return moved.loc[order].rename(index=lambda name: name.rpartition(".")[2])
