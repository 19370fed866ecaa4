"""Tables that know which poles an intervention is meant to move: alone, and composed."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from jaxtyping import Float
from numpy import ndarray

from personality_vector.numeric.statistics import (
    correlation,
    interval,
    moments,
    resampled_correlations,
)
from personality_vector.study.run import Run
from personality_vector.traits import Pole

OWN, GRID = "own trait", "own trait at each strength"
COMPOSED, KEPT = "compositions", "instructions against the sum of alphas"
_NUMBER = ["group", "measure", "judge"]
_FEWEST = 4
"""Combinations from which on resampling them says something."""


def pole_tables(run: Run, readings: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the tables of interventions whose poles are known, by name.

    Args:
        run: A run.
        readings: Those of its grid.
    """
    aims = _aims(run["poles"] or {})
    aimed = readings.dropna(subset="value").merge(aims, on=["intervention", "trait"])
    single, several = aimed[aimed["poles"] == 1], aimed[aimed["poles"] > 1]
    is_kept = readings["measure"].isin(list(_instructions(run["recipe"].get("measures", ()))))
    sizes = aims.drop_duplicates("intervention")[["intervention", "group", "poles"]]
    kept = readings[is_kept].dropna(subset="value").merge(sizes, on="intervention")
    return {
        OWN: own_trait(single),
        GRID: at_each_strength(single),
        COMPOSED: compositions(several),
        KEPT: against_sum(kept),
    }


def _aims(noted: Mapping[str, Any]) -> pd.DataFrame:
    """Return one row per intervention and pole that it is meant to move."""
    rows = [
        (label, one["group"], pole.trait, pole.sign, len(one["poles"]))
        for label, one in noted.items()
        for pole in map(Pole.parse, one["poles"])
    ]
    return pd.DataFrame(rows, columns=["intervention", "group", "trait", "sign", "poles"])


def joined(readings: pd.DataFrame, noted: Mapping[str, Any]) -> pd.DataFrame:
    """Return readings for a figure: combinations become their group, strengths signed alphas.

    A hundred curves of four points each say less than the mean score at each signed alpha. Readings
    of a trait that a combination does not aim at are left out.
    """
    aims = _aims(noted)
    several = aims[(aims["poles"] > 1) & aims.duplicated(["group", "trait"], keep=False)]
    is_one = readings["intervention"].isin(several["intervention"])
    rows = readings[is_one].merge(several, on=["intervention", "trait"])
    signed = rows.assign(intervention=rows["group"], strength=rows["sign"] * rows["strength"])
    return pd.concat([readings[~is_one], signed[readings.columns]], ignore_index=True)


def _instructions(measures: Sequence[Any]) -> Iterator[str]:
    """Yield the names of the measures that count which instructions are followed."""
    for one in measures:
        spec = one if isinstance(one, Mapping) else {one: {}}
        if "instructions" in spec:
            yield spec["instructions"].get("name") or "instructions"


def own_trait(readings: pd.DataFrame) -> pd.DataFrame:
    """Return one row per group and number: how the trait of a vector follows its strength.

    Columns: ``group, measure, judge, vectors``, the ``mean``, ``lowest`` and ``highest`` absolute r
    of a vector (Pearson's, between its strength and the score of its own trait), and how many move
    it ``backwards``, against their pole.

    Source:
        Personality Vector, arXiv:2509.19727, reports about 0.9, the mean of ten vectors.
    """
    rows = []
    for key, of in readings.groupby(_NUMBER, sort=False):
        found = [
            own["sign"].iloc[0] * correlation(list(own["strength"]), list(own["value"]))["pearson"]
            for _, own in of.groupby("intervention", sort=False)
        ]
        known = pd.Series([r for r in found if math.isfinite(r)], dtype=float)
        sizes = {"mean": known.abs().mean(), "lowest": known.abs().min()}
        sizes |= {"highest": known.abs().max(), "backwards": int((known < 0).sum())}
        if len(known):
            rows.append(dict(zip(_NUMBER, key, strict=True)) | {"vectors": len(known)} | sizes)
    return pd.DataFrame(rows)


def at_each_strength(readings: pd.DataFrame) -> pd.DataFrame:
    """Return one row per intervention and number, one column per strength: the own trait's score.

    Means over seeds. Only interventions that can be compared line by line: another one has the same
    pole and the same strengths. So of an alpha under each beta, or of a coefficient at each layer.
    """
    arms = readings.groupby("intervention", sort=False).agg(
        {"trait": "first", "sign": "first", "strength": lambda own: tuple(sorted(set(own)))}
    )
    shared = arms[arms.duplicated(keep=False) & (arms["strength"].map(len) > 1)]
    if shared.empty:
        return pd.DataFrame()
    rows = readings[readings["intervention"].isin(shared.index)]
    keys = ["trait", "measure", "judge", "intervention"]
    means = rows.groupby([*keys, "strength"], sort=False)["value"].mean()
    wide = means.unstack("strength").rename(columns=lambda strength: f"{strength:g}")
    order = [key for key in means.index.droplevel("strength").unique() if key in wide.index]
    return (
        wide.loc[order].reset_index().rename_axis(columns=None).sort_values(keys[:3], kind="stable")
    )


def compositions(readings: pd.DataFrame) -> pd.DataFrame:
    """Return, per group and number, how the score of each trait follows its signed alpha.

    Columns: ``group, measure, judge, trait, n``, Pearson's ``r`` over all points of the group
    between the score and the alpha with the sign of the trait's pole, and its 95 % interval; in the
    row ``mean`` of the traits also the ``gain``, how much higher it is than that of the first group
    of the same combinations. Intervals resample whole combinations, which all groups share, so that
    a gain is that of pairs.

    Source:
        Personality Vector, arXiv:2509.19727, reports 0.58, the mean of five traits.
    """
    rows: list[dict[str, Any]] = []
    for number, of in readings.groupby(["measure", "judge"], sort=False):
        first: dict[Any, Float[ndarray, " resamples"]] = {}
        for group, own in of.groupby("group", sort=False):
            arms, sums = _sums(own)
            found = resampled_correlations(sums)
            mean = found.mean(0)
            gain = mean - first.setdefault(arms, mean)
            rows += [
                dict(zip([*_NUMBER, "trait"], (group, *number, trait), strict=True))
                | {"n": int(count), **_interval("r", r, is_clear=len(arms) >= _FEWEST)}
                | (
                    _interval("gain", gain, is_clear=len(arms) >= _FEWEST)
                    if trait == "mean"
                    else {}
                )
                for trait, count, r in [
                    *zip(own["trait"].unique(), sums[..., 0].sum(1), found, strict=True),
                    ("mean", sums[..., 0].sum(), mean),
                ]
            ]
    return pd.DataFrame(rows)


def _sums(own: pd.DataFrame) -> tuple[Any, Float[ndarray, "traits combinations 6"]]:
    """Return the combinations of a group, and the sums that a correlation is computed from.

    Count, ``x, y, x^2, y^2, xy`` of each trait in each combination; x is the signed alpha and y the
    score, less its mean.
    """
    y = own["value"] - own.groupby("trait", sort=False)["value"].transform("mean")
    x = own["sign"] * own["strength"]
    sums = pd.DataFrame(moments(x.to_numpy(), y.to_numpy()), index=own.index)
    labels = own.groupby("intervention", sort=False)
    signs = labels.apply(
        lambda arm: tuple(sorted(set(zip(arm["trait"], arm["sign"], strict=True))))
    )
    arms = own["intervention"].map(signs)
    traits, combinations = own["trait"].unique(), sorted(set(signs))
    index = pd.MultiIndex.from_product([traits, combinations])
    found = sums.groupby([own["trait"], arms]).sum().reindex(index, fill_value=0.0)
    return tuple(combinations), found.to_numpy().reshape(len(traits), len(combinations), 6)


def _interval(
    name: str, values: Float[ndarray, " resamples"], *, is_clear: bool
) -> dict[str, float]:
    """Return a number, which comes first, with its interval by the rest."""
    drawn = values[1:] if is_clear else values[:0]
    found = interval(values[0], drawn)
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def against_sum(readings: pd.DataFrame) -> pd.DataFrame:
    """Return one row per group and number: how it follows the sum of all absolute alphas.

    Columns: ``group, measure, judge, n, spearman, pearson, ci_low, ci_high``, and the ``slope``.
    """
    return pd.DataFrame(
        dict(zip(_NUMBER, key, strict=True))
        | {"n": len(of)}
        | correlation(list(of["strength"].abs() * of["poles"]), list(of["value"]))
        for key, of in readings.groupby(_NUMBER, sort=False)
    )
