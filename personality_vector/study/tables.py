"""Tables of a run: which numbers it has, how they follow the strength, what equal effect costs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from personality_vector.numeric.statistics import correlation
from personality_vector.study.design import BASE, DosePoint, reach
from personality_vector.study.run import Run
from personality_vector.study.scores import agreement, shifts_of_scores
from personality_vector.traits import Pole

_KEYS = ["intervention", "trait", "measure", "judge"]
MATCHED, DOSES = "at matched effect", "dose and response"
MOVED, AGREEMENT = "answers against the base's", "agreement of judges"


def dose_response(run: Run) -> pd.DataFrame:
    """Return one row per intervention, trait and number: how it follows the strength.

    Columns: ``intervention, trait, measure, judge, n, unscored, base, spearman, pearson, ci_low,
    ci_high, slope``. ``n`` counts strengths times seeds. ``pearson`` has a 95 % confidence interval
    (Fisher's z); ``base`` is the mean over seeds of the unedited model. A number without a value at
    some strength is left out there and counted.
    """
    frame = on_grid(run, run.readings()).query("trait != ''")
    base = frame[frame["intervention"] == BASE].groupby(_KEYS[1:])["value"].mean()
    rows = []
    swept = frame[frame["intervention"] != BASE]
    for key, group in swept.groupby(_KEYS, sort=False):
        scored = group.dropna(subset=["value"])
        rows.append(
            dict(zip(_KEYS, key, strict=True))
            | {"n": len(scored), "unscored": int(group["unscored"].sum())}
            | {"base": float(base.get(key[1:], math.nan))}
            | correlation(scored["strength"].tolist(), scored["value"].tolist())
        )
    return pd.DataFrame(rows)


def by_strength(run: Run) -> pd.DataFrame:
    """Return one row per intervention and strength: the numbers of every trait, means over seeds.

    The base comes first, at strength 0.
    """
    shown = on_grid(run, run.readings()).query("trait != ''")
    names = {(one.measure, one.judge): one.name for one in numbers_of(run, of_traits=True)}
    keys = zip(shown["trait"], shown["measure"], shown["judge"], strict=True)
    named = shown.assign(name=[f"{trait} {names[of, judge]}" for trait, of, judge in keys])
    values = named.groupby(["intervention", "strength", "name"], sort=False)["value"].mean()
    return values.unstack("name", sort=False).reset_index().rename_axis(columns=None)


def side_effects(run: Run) -> pd.DataFrame:
    """Return one row per intervention and strength of the grid: the numbers of no trait."""
    wide = costs(on_grid(run, run.readings()))
    order = {label: index for index, label in enumerate([BASE, *run["arms"]])}
    return (
        wide.rename(columns=short_names(list(wide.columns)))
        .reset_index()
        .sort_values(
            ["intervention", "strength"],
            key=lambda c: c.map(order) if c.name == "intervention" else c,
        )
    )


def unscored(run: Run) -> pd.DataFrame:
    """Return the numbers of which something was not scored: how much, and out of how much.

    Columns: ``measure, judge, trait, scored, unscored``, over all cells.
    """
    counts = run.readings().groupby(["measure", "judge", "trait"], sort=False)[["n", "unscored"]]
    return counts.sum().query("unscored > 0").reset_index().rename(columns={"n": "scored"})


def tables_of(run: Run) -> dict[str, pd.DataFrame]:
    """Return the tables that show a run, by name, in the order in which they are read.

    A table without rows is left out, except that at matched effect, whose absence says something.
    """
    answers = run.answers()
    found = {"measures": run.readings().drop(columns=["intervention", "strength"])}
    if run["arms"]:
        found = {DOSES: dose_response(run)}
        if not found[DOSES].empty and found[DOSES]["spearman"].isna().any():
            found["by strength"] = by_strength(run)
        found[MOVED] = shifts_of_scores(answers)
    found["side effects"] = side_effects(run)
    if run["pole"] is not None:
        found[MATCHED] = matched_effect(run)
    scales = {name: judge["scale"] for name, judge in run["judges"].items()}
    found[AGREEMENT], found["unscored"] = agreement(answers, scales), unscored(run)
    return {name: table for name, table in found.items() if name == MATCHED or not table.empty}
