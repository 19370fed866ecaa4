"""What judges' scores say: how far answers moved from the base's, and whether judges agree."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from personality_vector.judges.pairwise import gap_between_orders
from personality_vector.numeric.statistics import (
    bootstrapped,
    correlation,
    krippendorff,
    of_share,
)
from personality_vector.study.design import BASE
from personality_vector.subject import AT_TURN

_SAME = ["intervention", "strength", "seed", "measure", "item", "sample"]


def by_turn(answers: pd.DataFrame) -> pd.DataFrame:
    """Return :func:`shifts_of_scores` at each turn of conversations, with a column ``turn``.

    Answers outside of conversations are left out.
    """
    found = numbered(answers)
    has_turns = found.groupby("measure")["turn"].transform("max") > 1
    return shifts_of_scores(found[has_turns], "turn")


def numbered(answers: pd.DataFrame) -> pd.DataFrame:
    """Return answers with the column ``turn``, from 1."""
    turn = answers["item"].str.extract(rf"{AT_TURN}(\d+)$", expand=False)
    return answers.assign(turn=pd.to_numeric(turn).fillna(1).astype(int))


def shifts_of_scores(answers: pd.DataFrame, *by: str) -> pd.DataFrame:
    """Return one row per intervention, strength, trait and judge: how far scores moved.

    Each of the ``answers`` of a run is compared with that of the base to the same item, sample and
    seed, where both are scored. Columns: ``intervention, strength, measure, trait, judge``, those
    of ``by``, ``n, shift``, ``low, high`` (the 95 % interval over items and seeds), ``wrong_way``
    (share of items that moved against the mean).
    """
    found = answers.query("judge != ''")
    keys = ["measure", "trait", "judge", "item", "sample", "seed"]
    of_base = found["intervention"] == BASE
    base = found[of_base].set_index(keys)["score"]
    rows = []
    groups = ["intervention", "strength", "measure", "trait", "judge", *by]
    for group, own in found[~of_base].groupby(groups, sort=False):
        moved = (
            own["score"].to_numpy() - base.reindex(pd.MultiIndex.from_frame(own[keys])).to_numpy()
        )
        table = own.assign(moved=moved).pivot_table(
            index=["item"], columns="seed", values="moved", dropna=False
        )
        n = int(np.isfinite(moved).sum())
        shift = float(np.nanmean(moved)) if n else float("nan")
        interval = bootstrapped(table.to_numpy()) if n else None
        by_item = table.mean(axis=1).dropna()
        against = (by_item * shift < 0).mean() if n else float("nan")
        low, high = interval or (float("nan"),) * 2
        row = {"n": n, "shift": shift, "low": low, "high": high, "wrong_way": against}
        rows.append(dict(zip(groups, group, strict=True)) | row)
    return pd.DataFrame(rows)


def choices(answers: pd.DataFrame, judges: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row per intervention, strength, trait and judge: whose reply it prefers.

    A judge prefers the reply that it gives more, out of an intervention's and the base's to the
    same item, sample and seed. A judge whose scale is the same on both sides of 0 compares, so that
    the sign of its score says it alone. Columns: ``intervention, strength, measure, trait, judge,
    n`` (pairs in which it prefers one), ``prefers`` (share of the intervention's, with its 95 %
    interval ``low, high`` by Wilson), ``tied, unscored, position_bias`` (mean distance, from 0
    to 2, between its scores of the two orders, where it shows both).

    Source:
        Olson et al. 2024, arXiv:2412.06060: how often a judge takes the reply whose creativity was
        amplified for the more creative one.
    """
    found = answers.query("judge != ''")
    keys = ["measure", "trait", "judge", "item", "sample", "seed"]
    of_base = found["intervention"] == BASE
    base = found[of_base].set_index(keys)["score"]
    rows = []
    groups = ["intervention", "strength", "measure", "trait", "judge"]
    for group, own in found[~of_base].groupby(groups, sort=False):
        scale = judges[group[-1]]["scale"]
        other = base.reindex(pd.MultiIndex.from_frame(own[keys])).to_numpy()
        moved = own["score"].to_numpy() - (0.0 if compares(scale) else other)
        won, lost = int((moved > 0).sum()), int((moved < 0).sum())
        share = won / (won + lost) if won + lost else float("nan")
        low, high = of_share(share, won + lost) if won + lost else (float("nan"),) * 2
        row = {"n": won + lost, "prefers": share, "low": low, "high": high}
        row |= {"tied": int((moved == 0).sum()), "unscored": int(np.isnan(moved).sum())}
        row |= {"position_bias": _position_bias(own["reason"])}
        rows.append(dict(zip(groups, group, strict=True)) | row)
    return pd.DataFrame(rows)


def compares(scale: Sequence[float] | None) -> bool:
    """Return whether a judge of this scale compares, so that 0 prefers neither of two replies."""
    return scale is not None and scale[0] == -scale[1]


def _position_bias(reasons: Iterable[str]) -> float:
    """Return the mean distance between a judge's scores of the two orders, if it shows both."""
    gaps = [gap for reason in reasons if (gap := gap_between_orders(reason)) is not None]
    return fmean(gaps) if gaps else float("nan")


def flatness(answers: pd.DataFrame, judges: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Return one row per trait and judge: how little its scores differ, over all answers of a run.

    Columns: ``measure, trait, judge, n, mean, sd``, and ``fullest_tenth``: the share of scores in
    the tenth of the judge's scale that holds most of them, around ``mode``. A judge from 0 to 9 has
    one number in each tenth.
    """
    rows = []
    scored = answers.query("judge != ''").dropna(subset="score")
    for group, own in scored.groupby(["measure", "trait", "judge"], sort=False):
        scale = judges[group[-1]]["scale"]
        if compares(scale):  # nobody compares the base with itself
            own = own[own["intervention"] != BASE]
        if own.empty:
            continue
        scores = own["score"].to_numpy()
        row = {"n": len(scores), "mean": scores.mean(), "sd": scores.std()}
        if scale:
            counts, edges = np.histogram(scores, 10, range=scale)
            fullest = int(counts.argmax())
            row |= {"fullest_tenth": counts[fullest] / len(scores)}
            row |= {"mode": float(edges[fullest : fullest + 2].mean())}
        rows.append(dict(zip(["measure", "trait", "judge"], group, strict=True)) | row)
    return pd.DataFrame(rows)


def agreement(answers: pd.DataFrame, scales: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """Return one row per trait and pair of judges: how far they agree on the same answers.

    ``answers`` are those of a run, pooled over all cells. Columns: ``trait, judge, other, n``
    (answers that both scored), ``spearman, pearson, ci_low, ci_high`` (95 %, of Pearson),
    ``alpha``: Krippendorff's, with every judge's scale mapped to [0, 1].
    """
    rows = []
    for trait, own in answers.query("judge != ''").groupby("trait", sort=False):
        table = own.pivot_table(index=_SAME, columns="judge", values="score", dropna=False)
        for one, other in combinations(table.columns, 2):
            both = table[[one, other]].dropna()
            row = correlation(both[one].tolist(), both[other].tolist())
            unit = np.array([_unit(both[name], scales.get(name)) for name in (one, other)])
            rows.append(
                {"trait": trait, "judge": one, "other": other, "n": len(both)}
                | {key: row[key] for key in ("spearman", "pearson", "ci_low", "ci_high")}
                | {"alpha": krippendorff(unit)}
            )
    return pd.DataFrame(rows)


def _unit(scores: "pd.Series[float]", scale: Sequence[float] | None) -> Any:
    low, high = scale or (0.0, 1.0)
    return (scores.to_numpy() - low) / (high - low)
