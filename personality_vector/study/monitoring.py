"""What activations tell of answers that follow, and at which layers an edited model differs."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from personality_vector.numeric.statistics import (
    interval,
    mean_difference,
    moments,
    resampled_correlations,
)
from personality_vector.study.design import BASE
from personality_vector.study.run import Run

_CONDITION = ["intervention", "strength"]


def monitoring(run: Run) -> pd.DataFrame:
    """Return how well the projection of a prompt foretells the score of the answer that follows.

    One row per trait, measure of activations, measure of answers and judge. Columns: ``trait,
    projection, measure, judge, conditions`` (interventions at a strength), ``n`` (pairs of an
    item's projection and the mean score of its answers, over samples and seeds), ``pearson, low,
    high`` (95 %, by drawing items again with all of their pairs) and ``within``, ``within_low``,
    ``within_high``: the same after the mean of each condition was subtracted from both, so that it
    says what the prompt's wording tells beyond the condition.

    Source:
        Persona vectors, Chen et al. 2025, arXiv:2507.21509: the projection of the last token of a
        prompt, correlated with the trait score overall and within conditions.
    """
    seen, answers = run.observations(), run.answers()
    seen = seen[seen["measure"].str.endswith(".prompt_projection")]
    scored = answers[answers["judge"] != ""].dropna(subset="score")
    keys = [*_CONDITION, "item", "trait"]
    scores = scored.groupby([*keys, "measure", "judge"], sort=False)["score"].mean().reset_index()
    along = seen.groupby([*keys, "measure"], sort=False)["value"].mean().reset_index()
    pairs = along.rename(columns={"measure": "projection"}).merge(scores, on=keys)
    rows = []
    names = ["trait", "projection", "measure", "judge"]
    for group, own in pairs.groupby(names, sort=False):
        both, conditions = own[["value", "score"]], own.groupby(_CONDITION)[["value", "score"]]
        rows.append(
            dict(zip(names, group, strict=True))
            | {"conditions": conditions.ngroups, "n": len(own)}
            | _by_items(both, own["item"], ("pearson", "low", "high"))
            | _by_items(
                both - conditions.transform("mean"),
                own["item"],
                ("within", "within_low", "within_high"),
            )
        )
    return pd.DataFrame(rows)


def _by_items(
    pairs: pd.DataFrame, items: "pd.Series[str]", names: Sequence[str]
) -> dict[str, float]:
    """Return a correlation and its interval under three names."""
    x, y = pairs["value"].to_numpy(), (pairs["score"] - pairs["score"].mean()).to_numpy()
    sums = pd.DataFrame(moments(x, y)).groupby(items.to_numpy()).sum()
    found = resampled_correlations(sums.to_numpy()[None])[0]
    return dict(zip(names, interval(found[0], found[1:]), strict=True))


def creativity_scores(run: Run) -> pd.DataFrame:
    """Return one row per condition and vector: the mean cosine of replies with the vector.

    Conditions are interventions at a strength, the base among them. Columns: ``intervention,
    strength, trait, measure, items, cosine, low, high`` (95 %, by drawing items and seeds again)
    and ``shift, shift_low, shift_high``: the same of the difference from the base on the same
    items.

    Source:
        Olson et al. 2024, arXiv:2412.06060, score three groups of stories: of creative prompts, of
        these with creativity amplified, and of uncreative prompts.
    """
    seen = run.observations()
    seen = seen[seen["measure"].str.endswith(".cosine_with_vector")]
    rows = []
    for (measure, trait), own in seen.groupby(["measure", "trait"], sort=False):
        items, seeds = own["item"].unique(), own["seed"].unique()
        tables = {
            condition: cells.pivot_table(index="item", columns="seed", values="value")
            .reindex(index=items, columns=seeds)
            .to_numpy()[..., None]
            for condition, cells in own.groupby(_CONDITION, sort=False)
        }
        base = tables.get((BASE, 0.0))
        for condition, values in tables.items():
            row = dict(zip(_CONDITION, condition, strict=True)) | {"trait": trait}
            row |= {"measure": measure, "items": int(np.isfinite(values).any((1, 2)).sum())}
            row |= zip(("cosine", "low", "high"), mean_difference(values), strict=True)
            if base is not None and condition != (BASE, 0.0):
                shift = mean_difference(values, base)
                row |= zip(("shift", "shift_low", "shift_high"), shift, strict=True)
            rows.append(row)
    return pd.DataFrame(rows)


def cosines_by_layer(run: Run) -> pd.DataFrame:
    """Return one row per measure and layer: the cosine of its states with the base's.

    On the base's replies. A column for each intervention, at the listed strength that is furthest
    from 0; means over seeds.
    """
    seen = run.observations()
    seen = seen[seen["measure"].str.endswith(".cosine_by_layer")]
    furthest = {label: max(strengths, key=abs) for label, strengths in run["arms"].items()}
    is_shown = seen["strength"] == seen["intervention"].map(furthest)
    table = seen[is_shown].pivot_table(
        index=["measure", "item"], columns="intervention", values="value", sort=False
    )
    shown = table.rename(columns={one: f"{one} at {at:g}" for one, at in furthest.items()})
    return shown.rename_axis(index=["measure", "layer"], columns=None).reset_index()
