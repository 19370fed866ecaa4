"""The scan of strengths, as the design of a study: outwards at every layer until a curve ends."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

from personality_vector.errors import DataError
from personality_vector.judges.classifier import StatementJudge
from personality_vector.study.choose.curve import CurvePoint, following
from personality_vector.study.choose.layers import Evidence
from personality_vector.study.design import BASE, Point
from personality_vector.study.run import Run
from personality_vector.traits import Pole

if TYPE_CHECKING:
    from personality_vector.study.worker import Worker

LIKELIHOOD, JUDGED, KL = "likelihood", "interview", "divergence.kl_base_edited"
FLUENCY, VARIETY = "coherence.fluency", "coherence.variety"
_NUMBERS = {LIKELIHOOD, JUDGED, KL, FLUENCY, VARIETY}


@dataclass(frozen=True, slots=True)
class Scan:
    """Strengths of some layers, from the weakest outwards in both directions.

    Every layer is an arm, named by :func:`arm_of`; its strengths are shares of its residual norm.

    Attributes:
        pole: What the vector leads to.
        layers: In the order of their rank.
        shares: Positive and rising; both directions take them.
        floor: Lowest coherence to accept; a direction ends with the first point below it.
    """

    pole: Pole
    layers: Sequence[Evidence]
    shares: Sequence[float]
    floor: float

    def batches(self, worker: "Worker") -> Iterator[Sequence[Point]]:
        """Yield the base, and then the next point of each direction that has not ended."""
        (seed,) = worker.study.seeds
        yield [Point(BASE, 0.0, seed)]
        run = Run(worker.store.path.parent)
        while batch := self._next(run):
            yield [Point(label, strength, seed) for label, strength in batch]

    def _next(self, run: Run) -> list[tuple[str, float]]:
        points = self.points(run)
        return [
            (arm_of(found.layer), share * found.unit)
            for found in self.layers
            for share in following(
                [point for point in points if point.layer == found.layer], self.shares, self.floor
            )
        ]

    def strengths(self, found: Evidence) -> list[float]:
        """Return every coefficient that may be tried at a layer, in rising order."""
        return sorted(share * found.unit for share in self._both())

    def points(self, run: Run) -> list[CurvePoint]:
        """Return the points that have been measured, layer after layer, each by share.

        Raises:
            DataError: The judge cannot read a single reply of the unsteered model.
        """
        cells = _by_cell(run.readings())
        base = cells[BASE, 0.0]
        if math.isnan(base.at[JUDGED, "value"]):
            raise DataError(
                "the unsteered model gives no readable reply to the instrument, so coherence "
                "cannot be measured; ask it other questions"
            )
        return [
            self._point(found, share, cells[arm_of(found.layer), share * found.unit], base)
            for found in self.layers
            for share in self._both()
            if (arm_of(found.layer), share * found.unit) in cells
        ]

    def _both(self) -> list[float]:
        return sorted(sign * share for sign in (-1.0, 1.0) for share in self.shares)

    def _point(
        self, found: Evidence, share: float, cell: pd.DataFrame, base: pd.DataFrame
    ) -> CurvePoint:
        moved = self.pole.sign * (cell["value"] - base["value"])
        scored, unscored = cell.loc[JUDGED, ["n", "unscored"]]
        return CurvePoint(
            layer=found.layer,
            share=share,
            coefficient=share * found.unit,
            shift=float(moved[LIKELIHOOD]),
            judge=None if math.isnan(moved[JUDGED]) else float(moved[JUDGED]),
            kl_to_base=float(cell.at[KL, "value"]),
            # Where nothing is said, nothing is fluent or varied.
            fluency=float(cell["value"].fillna(0.0)[FLUENCY]),
            readable=float(scored / (scored + unscored)),
            variety=float(cell["value"].fillna(0.0)[VARIETY]),
        )


def arm_of(layer: int) -> str:
    """Return the label of a layer in the results."""
    return f"layer {layer}"


def _by_cell(readings: pd.DataFrame) -> dict[tuple[str, float], pd.DataFrame]:
    """Return the numbers of each label and strength that has all of them, by their names."""
    ours = readings[readings["judge"].isin(["", StatementJudge.name])]
    groups = ours.groupby(["intervention", "strength"])
    return {
        (str(label), float(strength)): rows.set_index("measure")
        for (label, strength), rows in groups
        if set(rows["measure"]) >= _NUMBERS
    }
