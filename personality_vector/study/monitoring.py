"""What activations tell of answers that follow, and at which layers an edited model differs."""

import pandas as pd

from personality_vector.numeric.statistics import associations
from personality_vector.study.run import Run

_CONDITION = ["intervention", "strength", "seed"]


def monitoring(run: Run) -> pd.DataFrame:
    """Return how well the projection of a prompt foretells the score of the answer that follows.

    One row per trait, measure of activations, measure of answers and judge. Columns: ``trait,
    projection, measure, judge, conditions, n`` (pairs of an item's projection and the mean score of
    its answers, over all cells), ``pearson, low, high`` (95 %, over pairs) and ``within``,
    ``within_low``, ``within_high``: the same after the mean of each condition was subtracted from
    both, so that it says what the prompt's wording tells beyond the system prompt.

    Source:
        Persona vectors, Chen et al. 2025, arXiv:2507.21509: the projection of the last token of a
        prompt, correlated with the trait score overall and within conditions.
    """
    seen, answers = run.observations(), run.answers()
    seen = seen[seen["measure"].str.endswith(".prompt_projection")]
    scored = answers[answers["judge"] != ""].dropna(subset="score")
    keys = [*_CONDITION, "item", "trait"]
    means = scored.groupby([*keys, "measure", "judge"], sort=False)["score"].mean().reset_index()
    pairs = seen.rename(columns={"measure": "projection"}).merge(means, on=keys)
    rows = []
    names = ["trait", "projection", "measure", "judge"]
    for group, own in pairs.groupby(names, sort=False):
        inside = own[["value", "score"]] - own.groupby(_CONDITION)[["value", "score"]].transform(
            "mean"
        )
        overall = associations(own["value"].tolist(), own["score"].tolist())["pearson"]
        within = associations(inside["value"].tolist(), inside["score"].tolist())["pearson"]
        rows.append(
            dict(zip(names, group, strict=True))
            | {"conditions": len(own[_CONDITION].drop_duplicates()), "n": len(own)}
            | dict(zip(("pearson", "low", "high"), overall, strict=True))
            | dict(zip(("within", "within_low", "within_high"), within, strict=True))
        )
    return pd.DataFrame(rows)


def cosines_by_layer(run: Run) -> pd.DataFrame:
    """Return one row per layer: the cosine of its states with the base's, on the base's replies.

    A column for each intervention, at the listed strength that is furthest from 0; means over
    seeds.
    """
    seen = run.observations()
    seen = seen[seen["measure"].str.endswith(".cosine")]
    furthest = {label: max(strengths, key=abs) for label, strengths in run["arms"].items()}
    is_shown = seen["strength"] == seen["intervention"].map(furthest)
    table = seen[is_shown].pivot_table(
        index="item", columns="intervention", values="value", sort=False
    )
    return (
        table.rename(columns={one: f"{one} at {at:g}" for one, at in furthest.items()})
        .rename_axis(index="layer", columns=None)
        .reset_index()
    )
