"""Tables of a comparison, from values that are made up here."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest

from personality_vector.numeric.statistics import bootstrapped, mean_difference
from personality_vector.study.comparison import (
    Column,
    Comparison,
    fixed_and_broken,
    in_pairs,
)
from personality_vector.study.fronts import area, is_dominated
from personality_vector.study.numbers import Number
from personality_vector.study.tables import _disagreements
from personality_vector.traits import Pole

ITEMS, SEEDS = 40, 3


def correlated():
    """Return two interventions that differ by 0.2 on items that differ by far more."""
    rng = np.random.default_rng(0)
    items = rng.normal(0, 2, (ITEMS, 1, 1))
    one, other = (items + rng.normal(0, 0.1, (ITEMS, SEEDS, 1)) for _ in range(2))
    return one + 0.2, other


def test_a_paired_interval_is_tighter_and_holds_the_difference():
    one, other = correlated()
    column = Column("number", {("a", 1.0): one, ("b", 1.0): other}, is_shift=False)
    paired = column.between(("a", 1.0), ("b", 1.0))
    apart = [column.at((label, 1.0)) for label in "ab"]
    assert paired.low < 0.2 < paired.high
    assert paired.high - paired.low < 0.2 * (apart[0].high - apart[0].low)
    assert paired.value == pytest.approx(apart[0].value - apart[1].value)


def test_only_what_both_have_is_paired():
    one, other = correlated()
    other[: ITEMS // 2] = math.nan
    column = Column("number", {("a", 1.0): one, ("b", 1.0): other}, is_shift=False)
    rest = slice(ITEMS // 2, None)
    expected = one[rest].mean() - other[rest].mean()
    assert column.between(("a", 1.0), ("b", 1.0)).value == pytest.approx(expected)


def test_samples_of_an_item_are_no_further_items():
    """Repeating every answer adds nothing to what is known."""
    values = correlated()[0]
    again = np.repeat(values, 5, axis=2)
    assert bootstrapped(again) == pytest.approx(bootstrapped(values))


def test_a_number_without_items_has_an_interval_over_seeds():
    """The quantile of Student's t with two degrees of freedom is 4.303."""
    found = mean_difference(np.array([[[1.0], [2.0], [3.0]]]))
    half = 4.303 / math.sqrt(3)
    assert tuple(found) == pytest.approx((2.0, 2.0 - half, 2.0 + half), abs=1e-3)
    same = mean_difference(np.array([[[1.0], [1.0]]]))
    assert same.value == 1.0
    assert math.isnan(same.low)


def likelihoods(offset, lows=ITEMS):
    """Return observations of a base and of an edit that adds 0.1 to both poles, and an offset."""
    rng = np.random.default_rng(0)
    rows = []
    for (level, sign, n), seed in product((("high", 1, ITEMS), ("low", -1, lows)), range(SEEDS)):
        usual = rng.normal(-2, 0.1, n)
        for label, moved in (("base", 0.0), ("edit", offset + 0.1 * sign)):
            rows += [
                (label, seed, "likelihood", "calm", f"calm:{level} {i}", sign * (value + moved))
                for i, value in enumerate(usual)
            ]
    names = ["intervention", "seed", "measure", "trait", "item", "value"]
    return pd.DataFrame(rows, columns=names)


def interval_of(observations):
    table = observations.pivot_table(index=["item", "seed"], columns="intervention", values="value")
    one, base = (table[name].unstack("seed").to_numpy()[..., None] for name in ("edit", "base"))
    return mean_difference(one, base)


def test_what_moves_both_poles_alike_widens_no_interval():
    raw = likelihoods(offset=3.0)
    paired = in_pairs(raw)
    keys = ["intervention", "seed"]
    before, after = (each.groupby(keys)["value"].mean() for each in (raw, paired))
    assert after.tolist() == pytest.approx(before.tolist())
    wide, narrow = interval_of(raw), interval_of(paired)
    assert narrow.value == pytest.approx(wide.value) == pytest.approx(0.1)
    assert narrow.high - narrow.low < 0.01 < 0.5 < wide.high - wide.low


def test_statements_without_a_partner_stay_alone():
    raw = likelihoods(offset=0.0, lows=ITEMS - 1)
    assert in_pairs(raw)["item"].tolist() == raw["item"].tolist()
    tasks = raw.assign(item="q" + raw["item"].str[-1:], measure="tasks")
    assert set(in_pairs(tasks)["item"]) == set(tasks["item"])


def made(**frames):
    """Return a comparison whose store is replaced by frames."""
    comparison = object.__new__(Comparison)
    vars(comparison).update(pole=Pole("extraversion", "high"), **frames)
    return comparison


def test_fixed_and_broken_are_counts_over_items_and_seeds():
    rng = np.random.default_rng(1)
    places = [("base", 0.0), ("weights", 1.0), ("weights", 2.0)]
    right = {place: rng.integers(0, 2, (12, 2)) for place in places}
    rows = [
        (*place, seed, "tasks.accuracy", "", f"item {item}", float(right[place][item, seed]), 0)
        for place, item, seed in product(places, range(12), range(2))
    ]
    names = ["intervention", "strength", "seed", "measure", "trait", "item", "value", "sample"]
    observations = pd.DataFrame(rows, columns=names)
    means = observations.groupby(names[:5], as_index=False)["value"].mean()
    matches = [("likelihood", "weights", target, target) for target in (1.0, 2.0)]
    comparison = made(
        _observations=observations,
        _readings=means.assign(judge=""),
        costs={"tasks.accuracy": Number("tasks.accuracy", "", "share", None, "high")},
        matches=pd.DataFrame(matches, columns=["number", "intervention", "target", "strength"]),
    )
    table = fixed_and_broken(comparison)
    base = right["base", 0.0].ravel()
    for row in table.itertuples():
        now = right["weights", row.target].ravel()
        pairs = list(zip(base, now, strict=True))
        assert (row.right, row.wrong) == (base.sum(), len(base) - base.sum())
        assert row.broken == pytest.approx(pairs.count((1, 0)) / row.right)
        assert row.fixed == pytest.approx(pairs.count((0, 1)) / row.wrong)
        # What was gained and lost is what the accuracy moved by.
        assert row.fixed * row.wrong - row.broken * row.right == now.sum() - base.sum()
    assert (table["broken low"] <= table["broken"]).all()


@pytest.fixture(params=range(20))
def points(request):
    """Return up to five costs and effects below 1."""
    rng = np.random.default_rng(request.param)
    return [tuple(pair) for pair in rng.uniform(0.01, 1.0, (1 + request.param % 5, 2)).tolist()]


def test_a_front_that_dominates_has_a_larger_area(points):
    better = [(cost / 1.1, effect + 0.1) for cost, effect in points]
    assert area(better, 1.0) > area(points, 1.0)
    assert all(is_dominated(point, better) for point in points)
    assert not is_dominated(max(better, key=lambda point: point[1]), points)


def test_a_dominated_point_adds_no_area(points):
    cost, effect = points[0]
    assert area([*points, (1.1 * cost, 0.9 * effect)], 1.0) == pytest.approx(area(points, 1.0))


def test_the_area_is_the_mean_of_what_budgets_allow(points):
    budgets = (np.arange(20_000) + 0.5) / 20_000
    attained = [np.where(budgets >= cost, effect, 0.0) for cost, effect in points]
    assert area(points, 1.0) == pytest.approx(np.max(attained, axis=0).mean(), abs=1e-3)


@pytest.mark.parametrize("noise", [0.1, 50.0])
def test_effects_disagree_only_where_both_intervals_are_clear(noise):
    """Arm a costs 1 less at one matched effect, and 1 more at the other."""
    rng = np.random.default_rng(0)
    costs = {("a", 1.0): 1.0, ("b", 1.0): 2.0, ("a", 2.0): 3.0, ("b", 2.0): 2.0}
    rows = [
        (label, strength, seed, "cost", "", f"item {item}", cost + rng.normal(0, noise), 0)
        for (label, strength), cost in costs.items()
        for item, seed in product(range(ITEMS), range(SEEDS))
    ]
    names = ["intervention", "strength", "seed", "measure", "trait", "item", "value", "sample"]
    observations = pd.DataFrame(rows, columns=names)
    matches = [
        (effect, label, 0.5, strength)
        for effect, strength in (("likelihood", 1.0), ("interview", 2.0))
        for label in "ab"
    ]
    number = Number("cost", "", "nats per token", None, "low")
    comparison = made(
        _observations=observations,
        _readings=observations.groupby(names[:5], as_index=False)["value"].mean().assign(judge=""),
        axes={"likelihood": None, "interview": None},
        effects={"likelihood": None, "interview": None},
        firsts={"cost": number},
        matches=pd.DataFrame(matches, columns=["number", "intervention", "target", "strength"]),
    )
    said = "cost: a is cheaper than b at matched likelihood, but dearer at matched interview"
    assert _disagreements(comparison) == ([said] if noise < 1 else [])
