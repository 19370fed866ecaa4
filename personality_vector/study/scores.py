"""What judges' scores say: how far answers moved from the base's, and whether judges agree."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from personality_vector.numeric.statistics import bootstrapped, correlation, krippendorff
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
