"""Tables of a run: which numbers it has, how they follow the strength, what equal effect costs."""

import math
from itertools import combinations, permutations

import pandas as pd

from personality_vector.numeric.statistics import correlation
from personality_vector.study.comparison import (
    Column,
    Comparison,
    at_matched,
    cross_talk,
    differences,
    fixed_and_broken,
)
from personality_vector.study.curves import reach, sign_of
from personality_vector.study.design import BASE
from personality_vector.study.fronts import fronts
from personality_vector.study.monitoring import cosines_by_layer, creativity_scores, monitoring
from personality_vector.study.numbers import costs, numbers_of, on_grid, short_names
from personality_vector.study.poles import pole_tables
from personality_vector.study.profiles import agreement_of_measures
from personality_vector.study.respondents import respondents
from personality_vector.study.run import Run
from personality_vector.study.scores import (
    agreement,
    by_turn,
    choices,
    compares,
    flatness,
    shifts_of_scores,
)
from personality_vector.traits import BIG_FIVE

_KEYS = ["intervention", "trait", "measure", "judge"]
MATCHED, DIFFERENCES, DOSES = "at matched", "differences at matched", "dose and response"
CROSS_TALK, FIXED, FRONTS = "cross-talk", "fixed and broken", "fronts"
MOVED, AGREEMENT = "answers against the base's", "agreement of judges"
MEASURES_AGREE, RESPONDENTS = "agreement of measures", "self-report"
SCORES, CHOICES, FLATNESS = "cosines with vectors", "judges' choice", "flatness of judges"


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

    A table without rows is left out, except those at matched numbers, whose absence says something.
    """
    answers, judges = run.answers(), run["judges"]
    scales = {name: judge["scale"] for name, judge in judges.items()}
    found = {"measures": run.readings().drop(columns=["intervention", "strength"])}
    if run["arms"]:
        found = {DOSES: dose_response(run)}
        if not found[DOSES].empty and found[DOSES]["spearman"].isna().any():
            found["by strength"] = by_strength(run)
        found[MOVED], found["turn by turn"] = shifts_of_scores(answers), by_turn(answers)
        # Of a personality that nobody compares, how far scores moved says more.
        if any(map(compares, scales.values())) or {*answers["trait"]} - {"", *BIG_FIVE}:
            found[CHOICES] = choices(answers, judges)
        found |= pole_tables(run, on_grid(run, run.readings()))
    found[RESPONDENTS] = respondents(run)
    found["side effects"] = side_effects(run)
    found["monitoring"], found["cosine by layer"] = monitoring(run), cosines_by_layer(run)
    found[SCORES] = creativity_scores(run)
    if run["pole"] is not None:
        found |= matched_tables(Comparison(run))
    found[MEASURES_AGREE] = agreement_of_measures(run)
    found[FLATNESS] = flatness(answers, judges)
    found[AGREEMENT], found["unscored"] = agreement(answers, scales), unscored(run)
    is_kept = {name: name.startswith(MATCHED) for name in found}
    return {name: table for name, table in found.items() if is_kept[name] or not table.empty}


def matched_tables(comparison: Comparison) -> dict[str, pd.DataFrame]:
    """Return the tables of a comparison, by name; those of each axis first."""
    found = {}
    for axis in comparison.axes:
        found[f"{MATCHED} {axis}"] = at_matched(comparison, axis)
        found[f"{DIFFERENCES} {axis}"] = differences(comparison, axis)
    found[CROSS_TALK] = cross_talk(comparison)
    found[FIXED], found[FRONTS] = fixed_and_broken(comparison), fronts(comparison)
    return found


def remarks(run: Run) -> list[str]:
    """Return what the tables do not show.

    Which strengths were not rounded; at matched numbers also who set the targets, which
    interventions are near none of them, whether two effects disagree about what is cheap, and what
    intervals are over.
    """
    unrounded = [
        f"strengths of {label} were not rounded to {run['base']['dtype']}"
        for label in run["unrounded"] or ()
    ]
    return unrounded + (_at_matched(Comparison(run)) if run["pole"] is not None else [])


def _at_matched(comparison: Comparison) -> list[str]:
    said = [line for axis in comparison.axes for line in _of_targets(comparison, axis)]
    if not said:
        return []
    return [*said, *_disagreements(comparison), _of_intervals(comparison)]


def _of_targets(comparison: Comparison, axis: str) -> list[str]:
    reaches = {label: reach(curve) for label, curve in comparison.curves(axis).items()}
    moving = {label: far for label, far in reaches.items() if far > 0}
    said = []
    if comparison.axes[axis] is None and moving:
        weakest, unit = min(moving, key=moving.__getitem__), comparison.numbers(axis)[0].unit
        said = [
            f"{axis}: targets are equal steps up to {moving[weakest]:.3g} {unit}, "
            f"the furthest that {weakest} reaches"
        ]
    matches = comparison.matches[comparison.matches["number"] == axis]
    for target, rows in matches.groupby("target"):
        absent = rows[rows["strength"].isna()]["intervention"]
        text = f"{axis}: at {target:.3g} no strength of {', '.join(absent)} is near"
        furthest = ", ".join(f"{label} {far:.3g}" for label, far in reaches.items())
        if len(absent) == len(rows):
            text += f"; the furthest that they reach: {furthest}"
        said += [text] * bool(len(absent))
    return said


def _disagreements(comparison: Comparison) -> list[str]:
    """Return which interventions are clearly cheaper at one matched effect and dearer at another.

    Clearly: the 95 % intervals of both paired differences are away from 0.
    """
    axes = [axis for axis in comparison.axes if axis in comparison.effects]
    said = []
    for name, number in comparison.firsts.items():
        sign = sign_of(number.better, None)
        column = Column(name, comparison.cells(number, "", sign), is_shift=False)
        for one, other in combinations(axes, 2):
            cheaper = _cheaper(comparison, column, one) & {
                pair[::-1] for pair in _cheaper(comparison, column, other)
            }
            said += [
                f"{name}: {first} is cheaper than {second} at matched {one}, but dearer at "
                f"matched {other}"
                for first, second in sorted(cheaper)
            ]
    return said


def _cheaper(comparison: Comparison, column: Column, axis: str) -> set[tuple[str, str]]:
    """Return pairs of interventions, the clearly cheaper one first."""
    common = comparison.common(axis)
    places = dict(zip(common["intervention"], common["strength"], strict=True))
    return {
        (one, other)
        for one, other in permutations(places, 2)
        if column.between((one, places[one]), (other, places[other])).high < 0
    }


def _of_intervals(comparison: Comparison) -> str:
    names = [*comparison.effects, *comparison.costs]
    itemised = [name for name in names if comparison.has_items(name)]
    return (
        f"intervals are 95 %: over items and seeds for {', '.join(itemised) or 'none'}, and for "
        "other numbers over seeds, where these differ"
    )
