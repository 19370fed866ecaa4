"""What kind of respondent fills in a questionnaire."""

import math
from collections.abc import Sequence

import pandas as pd

from personality_vector.errors import some
from personality_vector.study.numbers import on_grid
from personality_vector.study.run import Run
from personality_vector.subject import Reading

FLAT = "Gives nearly the same answer to everything."
RANDOM = "Answers at random."
AGREES = "Agrees with items of either key."
DISAGREES = "Disagrees with items of either key."
_FLAT = 0.05
"""The spread below which answers are taken for one, as a share of the scale."""
_ROUNDING = 1e-6
_STYLE = ("acquiescence", "position_bias", "consistency", "spread")


def respondent(readings: Sequence[Reading], scale: tuple[float, float] = (1.0, 5.0)) -> str:
    """Return one sentence about who gave the numbers of one self-report.

    Of what sets answers apart from the middle of the scale, ``consistency`` is the share that is
    due to traits, and ``a^2 / (a^2 + s^2)``, with ``a`` the acquiescence and ``s`` the spread, that
    of agreeing with any item. Answers are at random if neither is above three standard errors of
    what chance gives, ``sqrt(2 traits) / items``; otherwise the larger one names the respondent.

    Args:
        readings: Those of a measure ``self_report`` in one cell.
        scale: The ends of its scale.
    """
    style = {one.measure.rpartition(".")[2]: one.value for one in readings if not one.trait}
    names = {one.measure for one in readings}
    traits = [one for one in readings if one.trait and f"{one.measure}.spread" in names]
    spread = style.get("spread")
    if spread is None or spread < _FLAT * (scale[1] - scale[0]):
        return FLAT if spread is not None else "No answer could be read."
    leaning, of_traits = style.get("acquiescence") or 0.0, style.get("consistency") or 0.0
    agreeing = leaning**2 / (leaning**2 + spread**2)
    chance = 3 * math.sqrt(2 * len(traits)) / max(1, sum(one.n for one in traits))
    if max(agreeing, of_traits) <= chance:
        return RANDOM
    if agreeing > of_traits:
        return AGREES if leaning > 0 else DISAGREES
    return f"Answers consistently: {_profile(traits, sum(scale) / 2)}."


def _profile(traits: Sequence[Reading], middle: float) -> str:
    """Return the traits whose interval is away from the middle, and their side."""
    high = [one.trait for one in traits if one.low is not None and one.low > middle + _ROUNDING]
    low = [one.trait for one in traits if one.high is not None and one.high < middle - _ROUNDING]
    sides = (("high", high), ("low", low))
    return ", ".join(f"{side} in {some(them, 5)}" for side, them in sides if them) or (
        "near the middle of every trait"
    )


def respondents(run: Run) -> pd.DataFrame:
    """Return one row per self-report, intervention and strength: how it was filled in, and by whom.

    Columns: ``measure, intervention, strength, acquiescence, position bias, consistency, spread,
    respondent``; means over seeds.
    """
    frame, measures = on_grid(run, run.readings()), run["measures"]
    rows = []
    for name in measures:
        own = frame[(frame["measure"] == name) | frame["measure"].str.startswith(f"{name}.")]
        if not {f"{name}.{word}" for word in ("spread", "position_bias")} <= set(own["measure"]):
            continue
        for (label, strength), cell in own.groupby(["intervention", "strength"], sort=False):
            readings = _over_seeds(cell)
            style = {one.measure: one.value for one in readings}
            scale = tuple(measures[name]["scale"])
            rows.append(
                {"measure": name, "intervention": label, "strength": strength}
                | {word.replace("_", " "): style.get(f"{name}.{word}") for word in _STYLE}
                | {"respondent": respondent(readings, (scale[0], scale[1]))}
            )
    return pd.DataFrame(rows)


def _over_seeds(cell: pd.DataFrame) -> list[Reading]:
    keys, numbers = ["measure", "trait"], ["value", "low", "high", "n"]
    means = cell.groupby(keys, sort=False)[numbers].mean()
    return [
        Reading(
            str(measure),
            _or_none(row["value"]),
            str(trait),
            _or_none(row["low"]),
            _or_none(row["high"]),
            int(row["n"]),
        )
        for (measure, trait), row in zip(means.index, means.to_dict("records"), strict=True)
    ]


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
