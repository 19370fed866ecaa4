"""The numbers that a run has, and how each is drawn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from personality_vector.study.design import BASE
from personality_vector.study.run import Run

_UNKNOWN: dict[str, Any] = {"unit": "", "scale": None, "better": "none"}
_VAGUE = {"mean", "p95", "max", "base_replies"}
"""Words that do not say what was measured."""


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
        better = better if of_traits or better != "towards_pole" else "none"
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


def costs(readings: pd.DataFrame) -> pd.DataFrame:
    """Return the numbers of no trait by intervention and strength, means over seeds.

    Columns are in the order in which they were measured.
    """
    own = readings.query("trait == ''")
    wide = own.pivot_table(index=["intervention", "strength"], columns="measure", values="value")
    return wide[[name for name in own["measure"].unique() if name in wide.columns]]
