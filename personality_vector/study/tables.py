"""Tables of a run: which numbers it has, how they follow the strength, what equal effect costs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from personality_vector.numeric.statistics import correlation
from personality_vector.study.design import BASE, DosePoint, reach
from personality_vector.study.poles import pole_tables
from personality_vector.study.run import Run
from personality_vector.study.scores import agreement, shifts_of_scores
from personality_vector.traits import Pole

_UNKNOWN: dict[str, Any] = {"unit": "", "scale": None, "better": "none"}
_VAGUE = {"mean", "p95", "max", "base_replies"}
"""Words that do not say what was measured."""
_KEYS = ["intervention", "trait", "measure", "judge"]
MATCHED, DOSES = "at matched effect", "dose and response"
MOVED, AGREEMENT = "answers against the base's", "agreement of judges"


@dataclass(frozen=True, slots=True)
class Number:
    """One number of a run, and how it is drawn.

    Attributes:
        measure: Its name in the readings.
        judge: Who gave it, or "".
        unit: Such as ``nats per token``.
        scale: The ends of its scale, where there is one.
        better: Which direction is wanted.
    """

    measure: str
    judge: str
    unit: str
    scale: tuple[float, float] | None
    better: str

    @property
    def name(self) -> str:
        """Its measure, and its judge if it has one: ``interview by classifier``."""
        return f"{self.measure} by {self.judge}" if self.judge else self.measure

    @property
    def label(self) -> str:
        """Its name and unit, for an axis."""
        scale = f"{self.scale[0]:g} to {self.scale[1]:g}" if self.scale else self.unit
        return f"{self.name}\n({scale})"


def numbers_of(run: Run, *, of_traits: bool) -> list[Number]:
    """Return the numbers that a run has of traits, or of none, in the order of its measures.

    Each is drawn as its measure or judge is, but for a unit of its own.
    """
    frame, measures, judges, units = run.readings(), run["measures"], run["judges"], run.units()
    frame = frame[(frame["trait"] != "") == of_traits]
    numbers = []
    for measure, judge in _distinct(frame):
        owners = [name for name in measures if f"{measure}.".startswith(f"{name}.")]
        drawn = measures[max(owners, key=len)] if owners else _UNKNOWN
        scale = None if measure in units else drawn["scale"]
        scale = judges[judge]["scale"] if judge in judges else scale
        unit, better = units.get(measure, drawn["unit"]), drawn["better"]
        numbers.append(Number(measure, judge, unit, tuple(scale) if scale else None, better))
    return numbers


def _distinct(readings: pd.DataFrame) -> list[tuple[str, str]]:
    """Return the measures and judges of readings, each pair once."""
    return list(readings[["measure", "judge"]].drop_duplicates().itertuples(index=False, name=None))


def short_names(numbers: Sequence[str]) -> dict[str, str]:
    """Return what stands for each number in a heading: its last word, where that says enough.

    The whole name stands where two numbers share the word, or the word is only a statistic.

    >>> short_names(["guards.words", "divergence.mean"])
    {'guards.words': 'words', 'divergence.mean': 'divergence mean'}
    """
    last = [number.rpartition(".")[2] for number in numbers]
    return {
        number: word if last.count(word) == 1 and word not in _VAGUE else number.replace(".", " ")
        for number, word in zip(numbers, last, strict=True)
    }


def on_grid(run: Run, readings: pd.DataFrame) -> pd.DataFrame:
    """Return the readings of the base and of the strengths that the recipe lists."""
    arms = {BASE: [0.0], **run["arms"]}
    is_listed = [
        strength in arms.get(label, ())
        for label, strength in zip(readings["intervention"], readings["strength"], strict=True)
    ]
    return readings[np.array(is_listed, dtype=bool)]  # a list without elements picks columns


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


def shifts(run: Run, pole: Pole) -> dict[str, list[DosePoint]]:
    """Return, per intervention, how far each strength of the grid moves the effect to ``pole``.

    Means over seeds, each against the base with the same seed.
    """
    moved = _towards(pole, _moved(run, run["effect"]))
    return {
        label: [DosePoint(s, float(moved[label, s])) for s in strengths if (label, s) in moved]
        for label, strengths in run["arms"].items()
    }


def _moved(run: Run, measure: str, judge: str = "") -> pd.DataFrame:
    """Return the readings of a number; ``shift`` is its distance from the base with that seed."""
    frame = run.readings()
    own = frame[(frame["measure"] == measure) & (frame["judge"] == judge)]
    base = own[own["intervention"] == BASE].set_index(["trait", "seed"])["value"]
    keys = pd.MultiIndex.from_frame(own[["trait", "seed"]])
    return own.assign(shift=own["value"] - base.reindex(keys).to_numpy())


def _towards(pole: Pole, moved: pd.DataFrame) -> "pd.Series[float]":
    """Return the mean shift towards ``pole``, by intervention and strength."""
    own = moved[moved["trait"] == pole.trait]
    return (pole.sign * own["shift"]).groupby([own["intervention"], own["strength"]]).mean()


def off_targets(run: Run, pole: Pole) -> "pd.Series[float]":
    """Return the mean absolute shift of the other traits, by intervention and strength."""
    moved = _moved(run, run["effect"])
    others = moved[moved["trait"] != pole.trait]
    return others["shift"].abs().groupby([others["intervention"], others["strength"]]).mean()


def costs(readings: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers of no trait by intervention and strength, means over seeds.

    Columns are in the order in which they were measured.
    """
    own = readings.query("trait == ''")
    wide = own.pivot_table(index=["intervention", "strength"], columns="measure", values="value")
    return wide[[name for name in own["measure"].unique() if name in wide.columns]]


def matched_effect(run: Run) -> pd.DataFrame:
    """Return one row per target and intervention: the effect, and what it costs.

    Columns: ``target, intervention, strength, shift`` (of the effect, towards the pole), ``reach``
    (the largest shift of its grid before that turns back), a column for each judge (shift of its
    mean towards the pole, on its scale), ``off_target`` (mean absolute shift of the other traits),
    and every number of no trait. Where no strength moves an intervention by the target, all but
    its reach is NaN.
    """
    pole, readings, cost = Pole.parse(run["pole"]), run.readings(), costs(run.readings())
    own = readings[(readings["judge"] != "") & (readings["trait"] == pole.trait)]
    curves = shifts(run, pole)
    matches = pd.DataFrame(run["matches"], columns=["intervention", "target", "strength"])
    matches = matches[["target", "intervention", "strength"]].astype({"strength": "float64"})
    found = {
        "shift": _towards(pole, _moved(run, run["effect"])),
        **{f"{who} shift": _towards(pole, _moved(run, name, who)) for name, who in _distinct(own)},
        "off_target": off_targets(run, pole),
        **cost.rename(columns=short_names(list(cost.columns))),
    }
    table = matches.join(pd.DataFrame(found), on=["intervention", "strength"])
    table.insert(4, "reach", [reach(curves[label]) for label in table["intervention"]])
    return table.sort_values(["target", "intervention"], ignore_index=True)


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
        found |= pole_tables(run, on_grid(run, run.readings()))
    found["side effects"] = side_effects(run)
    if run["pole"] is not None:
        found[MATCHED] = matched_effect(run)
    scales = {name: judge["scale"] for name, judge in run["judges"].items()}
    found[AGREEMENT], found["unscored"] = agreement(answers, scales), unscored(run)
    return {name: table for name, table in found.items() if name == MATCHED or not table.empty}


def remarks(run: Run) -> list[str]:
    """Return what the table at matched effect does not show.

    Who set the targets, and which interventions are near none of them.
    """
    curves = shifts(run, Pole.parse(run["pole"]))
    moving = {label: reach(curve) for label, curve in curves.items() if reach(curve) > 0}
    if not moving:
        return []
    weakest, unit = min(moving, key=moving.__getitem__), run["measures"][run["effect"]]["unit"]
    said = [
        f"targets are equal steps up to {moving[weakest]:.3g} {unit}, "
        f"the furthest that {weakest} reaches"
    ]
    absent: dict[float, list[str]] = {}
    for label, target, strength in run["matches"]:
        if strength is None:
            absent.setdefault(target, []).append(label)
    return said + [
        f"at {target:.3g} no strength of {', '.join(labels)} is near"
        for target, labels in absent.items()
    ]
