"""Monitoring: what a projection tells over all conditions, and what it tells within one."""

from itertools import product

import numpy as np
import pandas as pd
import pytest

from personality_vector.study.monitoring import (
    cosines_by_layer,
    creativity_scores,
    monitoring,
)
from personality_vector.study.run import Run

RNG = np.random.default_rng(0)


class Tables(Run):
    """A run without a folder, that holds the tables it is given."""

    def __init__(self, **tables):
        self.__dict__.update(tables)

    def observations(self):
        return self.seen

    def answers(self):
        return self.said

    def __getitem__(self, key):
        return self.__dict__[key]


def made(within):
    """Return a run whose answers follow the condition, and if ``within``, each item as well."""
    cells = [("base", 0.0), *product(("shy", "loud"), (1.0, 2.0))]
    level = {"base": 0.0, "shy": -1.0, "loud": 1.0}
    seen, said = [], []
    for (label, strength), item in product(cells, "abcdefgh"):
        mean, own = level[label] * strength, RNG.normal()
        key = {"intervention": label, "strength": strength, "seed": 0, "item": item}
        key |= {"trait": "extraversion"}
        seen.append(key | {"measure": "mine.prompt_projection", "value": mean + own})
        noise = own if within else RNG.normal()
        said += [
            key | {"measure": "interview", "judge": "j", "score": mean + noise + more}
            for more in (-0.1, 0.1)
        ]
    said[0]["score"] = np.nan  # unscored: the other sample stands alone
    return Tables(seen=pd.DataFrame(seen), said=pd.DataFrame(said))


@pytest.mark.parametrize("within", [False, True])
def test_within_a_condition_only_the_item_counts(within):
    run = made(within)
    (row,) = monitoring(run).to_dict("records")
    assert (row["conditions"], row["n"]) == (5, 40)
    keys = ["intervention", "strength", "item"]
    scores = run.said.groupby(keys)["score"].mean()
    pairs = run.seen.set_index(keys).join(scores)[["value", "score"]]
    assert row["pearson"] == pytest.approx(np.corrcoef(pairs.T)[0, 1])
    inside = pairs - pairs.groupby(["intervention", "strength"]).transform("mean")
    assert row["within"] == pytest.approx(np.corrcoef(inside.T)[0, 1])
    assert row["low"] < row["pearson"] < row["high"]
    assert (row["within"] > 0.9) == within
    assert row["pearson"] > 0.7


def test_cosines_are_shown_at_the_strength_that_is_furthest_out():
    seen = [
        {
            "intervention": label,
            "strength": strength,
            "seed": seed,
            "measure": "mine.cosine_by_layer",
        }
        | {"trait": "", "item": f"layer {layer}", "value": 1 - layer * abs(strength) / 10 - seed}
        for label, strength in [("base", 0.0), ("one", -2.0), ("one", 1.0), ("two", 1.0)]
        for layer, seed in product((0, 10, 2), (0, 1))
    ]

    arms = {"one": [-2.0, 1.0], "two": [1.0]}
    table = cosines_by_layer(Tables(seen=pd.DataFrame(seen), arms=arms))
    assert table.columns.tolist() == ["measure", "layer", "one at -2", "two at 1"]
    assert table["layer"].tolist() == ["layer 0", "layer 10", "layer 2"]
    assert table["one at -2"].tolist() == pytest.approx([0.5, -1.5, 0.1])


def test_scores_of_groups_have_an_interval_and_their_difference_a_narrower_one():
    """Items differ far more than an intervention moves each of them."""
    usual = {(item, seed): RNG.normal() for item, seed in product("abcdefgh", (0, 1))}
    moved = {"base": 0.0, "steered": 0.3, "twins": -0.2}
    seen = [
        {"intervention": label, "strength": float(label != "base"), "seed": seed, "item": item}
        | {"measure": "mine.cosine_with_vector", "trait": "creativity"}
        | {"value": usual[item, seed] + by + RNG.normal() / 100}
        for label, by in moved.items()
        for item, seed in usual
        if (label, item) != ("twins", "a")  # it said nothing
    ]
    base, steered, twins = creativity_scores(Tables(seen=pd.DataFrame(seen))).to_dict("records")
    assert [row["items"] for row in (base, steered, twins)] == [8, 8, 7]
    mean = np.mean([one["value"] for one in seen if one["intervention"] == "base"])
    assert base["cosine"] == pytest.approx(mean)
    assert base["low"] < mean < base["high"]
    assert np.isnan(base["shift"])
    assert steered["shift"] == pytest.approx(0.3, abs=0.02)
    width = steered["shift_high"] - steered["shift_low"]
    assert width < (steered["high"] - steered["low"]) / 10
    assert steered["shift_low"] < steered["shift"] < steered["shift_high"]
