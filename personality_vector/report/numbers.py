"""The numbers of a run, and how each is drawn: by its unit, scale and direction."""

from dataclasses import dataclass
from typing import Any

from personality_vector.study.run import Run


@dataclass(frozen=True, slots=True)
class Number:
    """One number of a run.

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
    def label(self) -> str:
        """Its name and unit, for an axis."""
        name = f"{self.measure} by {self.judge}" if self.judge else self.measure
        scale = f"{self.scale[0]:g} to {self.scale[1]:g}" if self.scale else self.unit
        return f"{name}\n({scale})"


def numbers_of(run: Run, *, of_traits: bool) -> list[Number]:
    """Return the numbers that a run has of traits, or of none, in the order of its measures."""
    frame = run.readings()
    frame = frame[(frame["trait"] != "") == of_traits]
    measures, judges, units = run["measures"], run["judges"], run.units()
    rows = frame[["measure", "judge"]].drop_duplicates().itertuples(index=False, name=None)
    return [
        _number(measure, judge, _drawn(measure, measures, units), judges) for measure, judge in rows
    ]


def _drawn(number: str, measures: dict[str, Any], units: dict[str, str]) -> dict[str, Any]:
    """Return how a number is drawn: as its measure, but for a unit of its own."""
    owner = max((name for name in measures if _is_of(number, name)), key=len, default="")
    drawn: dict[str, Any] = measures.get(owner, {"unit": "", "scale": None, "better": "none"})
    return {**drawn, "unit": units[number], "scale": None} if number in units else drawn


def _number(measure: str, judge: str, drawn: dict[str, Any], judges: dict[str, Any]) -> Number:
    scale = judges[judge]["scale"] if judge in judges else drawn["scale"]
    return Number(measure, judge, drawn["unit"], tuple(scale) if scale else None, drawn["better"])


def _is_of(number: str, measure: str) -> bool:
    return number == measure or number.startswith(f"{measure}.")
