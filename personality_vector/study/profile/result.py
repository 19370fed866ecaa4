"""What was found on the way to a target profile: slopes, tries, and the curve through the best."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from personality_vector.manifest import rounded
from personality_vector.merging.recipe import MergeRecipe
from personality_vector.numeric.statistics import Interval
from personality_vector.traits import Trait

Shifts = Mapping[Trait, Interval]
"""How far each trait lies from the base, with its 95 % interval."""


@dataclass(frozen=True, slots=True)
class Try:
    """A merge that was measured: the alpha of every term, and the shifts that they give."""

    alphas: tuple[float, ...]
    shifts: Shifts

    def lacking(self, target: Mapping[Trait, float]) -> list[Trait]:
        """Return the traits whose target lies outside the interval of their shift."""
        return [
            trait
            for trait, wanted in target.items()
            if not self.shifts[trait].low <= wanted <= self.shifts[trait].high
        ]


@dataclass(frozen=True, slots=True)
class Profile:
    """How near a merge comes to a target profile.

    Attributes:
        labels: Names of the terms.
        poles: What each is a vector of, or "".
        target: Wanted shift of each trait.
        unit: Of every shift.
        most: The largest alpha that was allowed.
        allowed: The number of tries that were allowed.
        slopes: Shift of each trait per unit of the alpha of each term, measured alone.
        tries: In the order in which they were measured.
        best: The one that reaches the target; where none does, the nearest one.
        curve: Shifts at multiples of the alphas of the best try; empty where it was reached.
        recipe: Makes the checkpoint of the best try.
        made_from: The recipe of the profile, and the content of its inputs.
    """

    labels: Sequence[str]
    poles: Sequence[str]
    target: Mapping[Trait, float]
    unit: str
    most: float
    allowed: int
    slopes: Mapping[Trait, Sequence[Interval]]
    tries: Sequence[Try]
    best: Try
    curve: Sequence[tuple[float, Shifts]]
    recipe: MergeRecipe
    made_from: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_reached(self) -> bool:
        """Whether the target of every trait lies within the interval of its shift."""
        return not self.best.lacking(self.target)

    def verdict(self) -> str:
        """Return in one sentence what was reached, or that it is out of reach and by how much."""
        best = self.best
        if self.is_reached:
            named = ", ".join(f"{t} {w:+g} is {said(best.shifts[t])}" for t, w in self._targets)
            return f"reached: {named}"
        far = "; ".join(
            f"{trait} {self.target[trait]:+g} is wanted, and the nearest is "
            f"{said(best.shifts[trait])}"
            for trait in best.lacking(self.target)
        )
        return f"out of reach: {far}; {self._reason()}"

    def remarks(self) -> list[str]:
        """Say which shifts cannot be told from none, and which other traits move further."""
        shifts, furthest = self.best.shifts, max(map(abs, self.target.values()))
        unclear = [t for t, w in self._targets if w and shifts[t].low <= 0.0 <= shifts[t].high]
        others = (trait for trait in shifts if trait not in self.target)
        moved = [trait for trait in others if abs(shifts[trait].value) > furthest]
        return [
            f"{trait}: the interval of the shift also holds 0; a measure with more items says more"
            for trait in unclear
        ] + [f"{trait}, which has no target, moves by {said(shifts[trait])}" for trait in moved]

    def matrix(self) -> pd.DataFrame:
        """Return the cross-talk: one row for each trait, one slope for each term."""
        return _wide(self.slopes, self.labels)

    def attempts(self) -> pd.DataFrame:
        """Return one row for each trait that was measured: its target, and its shift in each try.

        A trait without a target has NaN.
        """
        names = [f"try {number}" for number in range(1, len(self.tries) + 1)]
        shifts = {trait: [one.shifts[trait] for one in self.tries] for trait in self.slopes}
        table = _wide(shifts, names)
        table.insert(1, "target", [self.target.get(trait, np.nan) for trait in shifts])
        return table

    def weights(self) -> pd.DataFrame:
        """Return one row for each term: its pole, and its alpha in each try."""
        tried = {f"try {n}": one.alphas for n, one in enumerate(self.tries, 1)}
        return pd.DataFrame({"term": self.labels, "pole": [p or "-" for p in self.poles], **tried})

    def ray(self) -> pd.DataFrame:
        """Return one row for each multiple of the best alphas, with the shift of every trait."""
        named = {f"{factor:g}": shifts for factor, shifts in self.curve}
        rows = {name: [shifts[trait] for trait in self.slopes] for name, shifts in named.items()}
        return _wide(rows, list(self.slopes)).rename(columns={"trait": "times alpha"})

    def record(self) -> dict[str, Any]:
        """Return the profile as JSON-like data, nine digits of every number."""
        return dict(
            rounded(
                {
                    "kind": "profile",
                    "format": 1,
                    "reached": self.is_reached,
                    "verdict": self.verdict(),
                    "unit": self.unit,
                    "target": dict(self.target),
                    "alphas": dict(zip(self.labels, self.best.alphas, strict=True)),
                    "shifts": _plain(self.best.shifts),
                    "slopes": {
                        trait: {
                            label: slope._asdict()
                            for label, slope in zip(self.labels, row, strict=True)
                        }
                        for trait, row in self.slopes.items()
                    },
                    "tries": [
                        {"alphas": list(one.alphas), "shifts": _plain(one.shifts)}
                        for one in self.tries
                    ],
                    "curve": [{"times": t, "shifts": _plain(shifts)} for t, shifts in self.curve],
                }
            )
        )

    @property
    def _targets(self) -> list[tuple[Trait, float]]:
        return list(self.target.items())

    def _reason(self) -> str:
        alphas = zip(self.labels, self.best.alphas, strict=True)
        bound = [label for label, alpha in alphas if abs(alpha) >= self.most]
        if bound:
            return f"the alpha of {' and '.join(bound)} is at its bound of {self.most:g}"
        if len(self.tries) < self.allowed:
            return "a linear model of these vectors knows no better alphas"
        made = "1 try was" if self.allowed == 1 else f"{self.allowed} tries were"
        return f"{made} made, which is what tries allows"


def said(shift: Interval) -> str:
    """Return a shift with its interval, in words."""
    return f"{shift.value:+.3g} (95 % interval {shift.low:+.3g} to {shift.high:+.3g})"


def _wide(rows: Mapping[str, Sequence[Interval]], columns: Sequence[str]) -> pd.DataFrame:
    """Return one row for each key, and for each column a number with its interval."""
    table: dict[str, Any] = {"trait": list(rows)}
    for number, name in enumerate(columns):
        found = [row[number] for row in rows.values()]
        table[name] = [one.value for one in found]
        table |= {f"{name} {end}": [getattr(one, end) for one in found] for end in ("low", "high")}
    return pd.DataFrame(table)


def _plain(shifts: Shifts) -> dict[Trait, Any]:
    return {trait: shift._asdict() for trait, shift in shifts.items()}
