"""Weights versus activations versus prompts, at matched effect."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pandas as pd

from personality_vector.interventions.system_prompt import SystemPrompt
from personality_vector.progress import progress
from personality_vector.recipes.schema import MATCHED, CompareRecipe
from personality_vector.study.matched import DosePoint, matched_strength, nearest_strength, reach
from personality_vector.study.results import Measure, Results
from personality_vector.study.runs import running
from personality_vector.study.sweep import (
    BASE,
    Bench,
    labels_of,
    measure_cell,
    measure_cells,
    prepare,
)
from personality_vector.traits import Pole

NO_MATCH = (
    "No strength in the grids moves the probe towards this pole; give strengths of the other sign, "
    "or larger ones."
)

SIDE_EFFECTS = ("kl_to_base", "perplexity", "distinct_2", "words")


@dataclass(frozen=True, slots=True)
class Match:
    """Where one intervention has a wanted effect.

    Attributes:
        intervention: Its label.
        target: The wanted shift of the probe towards the pole, nats per token.
        strength: The strength that gives it, or ``None`` if the intervention never does.
    """

    intervention: str
    target: float
    strength: float | None


def compare(recipe: CompareRecipe, out: Path, *, force: bool = False) -> Results:
    """Sweep every intervention, then measure all of them at strengths of equal effect.

    The targets are ``points`` equal steps up to what the weakest of the interventions reaches. A
    prompt comes in steps and is taken at the nearest one. Returns the open results, of which
    :func:`matched_effect` is the table.

    Raises:
        OutputExistsError: ``out`` holds the results of another recipe.
        BaseMismatchError: An intervention belongs to another base.
    """
    with running(recipe, out, force=force) as results:
        bench = prepare(recipe)
        measure_cells(bench, results)
        for match in progress(find_matches(bench, results, recipe), "compare"):
            _measure_match(bench, results, recipe.pole, match)
    return results


def shifts(results: Results, pole: Pole) -> dict[str, list[DosePoint]]:
    """Return, per intervention of the sweep, how far each strength moves the probe to ``pole``."""
    frame = results.frame("measures")
    probe = frame[(frame["measure"] == "probe") & (frame["trait"] == pole.trait)]
    base = _base_value(probe)
    curves: dict[str, list[DosePoint]] = {}
    for label in labels_of(results):
        rows = probe[probe["intervention"] == label]
        curves[label] = [
            DosePoint(float(strength), pole.sign * (float(value) - base))
            for strength, value in zip(rows["strength"], rows["value"], strict=True)
        ]
    return curves


def targets_of(curves: Sequence[Sequence[DosePoint]], points: int) -> list[float]:
    """Return ``points`` equal steps up to the smallest reach among interventions that have any.

    >>> targets_of([[DosePoint(1.0, 0.4)], [DosePoint(3.0, 0.2), DosePoint(6.0, 0.8)]], 2)
    [0.2, 0.4]
    """
    reaches = [found for found in map(reach, curves) if found > 0]
    return [min(reaches) * step / points for step in range(1, points + 1)] if reaches else []


def find_matches(bench: Bench, results: Results, recipe: CompareRecipe) -> list[Match]:
    """Return, for every target and intervention, the strength that has this effect."""
    pole, curves = recipe.pole, shifts(results, recipe.pole)
    probe = results.frame("measures").query("measure == 'probe' and trait == @pole.trait")
    base = _base_value(probe)
    matches = []
    for target in targets_of(list(curves.values()), recipe.points):
        for label, curve in curves.items():
            if isinstance(bench.interventions[label], SystemPrompt):
                strength = nearest_strength(curve, target)
            else:
                shift = partial(_shift, bench, label, pole, base)
                strength = matched_strength(curve, target, shift)
            matches.append(Match(label, target, strength))
    return matches


def _shift(bench: Bench, label: str, pole: Pole, base: float, strength: float) -> float:
    return pole.sign * (bench.effect(label, strength, pole.trait) - base)


def _measure_match(bench: Bench, results: Results, pole: Pole, match: Match) -> None:
    label = f"{match.intervention}{MATCHED}{match.target:.4g})"
    if match.strength is None or results.finished(label, match.strength):
        return
    target = Measure(pole.trait, "target", match.target, None, 1)
    measure_cell(bench, results, match.intervention, match.strength, label, [target])


def matched_effect(results: Results, pole: Pole) -> pd.DataFrame:
    """Return one row per target and intervention: the effect, and what it costs.

    Columns: ``target, intervention, strength, shift`` (probe, towards the pole), ``judge_shift``
    (of the judge's mean towards the pole, 1-5 scale), ``off_target`` (mean absolute shift of the
    other traits' probes) and the side effects.
    """
    frame = results.frame("measures")
    base = frame[frame["intervention"] == BASE].set_index(["trait", "measure"])["value"]
    matched = frame[frame["intervention"].str.contains(MATCHED, regex=False)]
    off_target = off_targets(results, pole)
    rows = []
    for (label, strength), cell in matched.groupby(["intervention", "strength"], sort=False):
        value = cell.set_index(["trait", "measure"])["value"]
        rows.append(
            {
                "target": value[(pole.trait, "target")],
                "intervention": str(label).partition(MATCHED)[0],
                "strength": strength,
                "shift": pole.sign * (value - base)[(pole.trait, "probe")],
                "judge_shift": pole.sign * (value - base)[(pole.trait, "judge")],
                "off_target": off_target.get((label, strength), float("nan")),
            }
            | {name: value.get(("", name), float("nan")) for name in SIDE_EFFECTS}
        )
    table = pd.DataFrame(rows)
    return table.sort_values(["target", "intervention"], ignore_index=True) if rows else table


def remarks(results: Results, pole: Pole) -> list[str]:
    """Return what the table does not show: who set the targets, and who is near none of them."""
    curves = shifts(results, pole)
    reaches = {label: reach(curve) for label, curve in curves.items()}
    moving = {label: found for label, found in reaches.items() if found > 0}
    if not moving:
        return []
    weakest = min(moving, key=moving.__getitem__)
    said = [
        f"targets are equal steps up to {moving[weakest]:.3g} nats per token, "
        f"the furthest that {weakest} reaches"
    ]
    table = matched_effect(results, pole)
    found = {} if table.empty else dict(table.groupby("target")["intervention"].agg(set))
    for target in targets_of(list(curves.values()), int(results.spec["points"])):
        met = [labels for known, labels in found.items() if math.isclose(known, target)]
        absent = [label for label in reaches if not any(label in labels for labels in met)]
        if absent:
            said.append(f"at {target:.3g} no strength of {', '.join(absent)} is near")
    return said


def divergences(results: Results) -> "pd.Series[float]":
    """Return KL(base || edited) of every cell, by intervention and strength."""
    frame = results.frame("measures")
    cells = frame[frame["measure"] == "kl_to_base"]
    return cells.set_index(["intervention", "strength"])["value"]


def off_targets(results: Results, pole: Pole) -> "pd.Series[float]":
    """Return the mean absolute shift of the other traits' probes, by intervention and strength."""
    frame = results.frame("measures")
    others = frame[(frame["measure"] == "probe") & (frame["trait"] != pole.trait)]
    base = others[others["intervention"] == BASE].set_index("trait")["value"]
    moved = (others["value"] - others["trait"].map(base).astype(float)).abs()
    return moved.groupby([others["intervention"], others["strength"]]).mean()


def _base_value(probe: pd.DataFrame) -> float:
    return float(probe[probe["intervention"] == BASE]["value"].iloc[0])
