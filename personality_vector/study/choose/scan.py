"""The scan of strengths, as the design of a study, and the choice that it leads to.

A scan goes outwards at every layer until its curve ends: the effect of a vector there at growing
strengths.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from personality_vector.errors import DataError
from personality_vector.judges.classifier import StatementJudge
from personality_vector.manifest import rounded
from personality_vector.study.choose.layers import Evidence
from personality_vector.study.design import BASE, Point
from personality_vector.study.run import Run
from personality_vector.traits import Pole

if TYPE_CHECKING:
    from personality_vector.study.worker import Worker

LIKELIHOOD, JUDGED, DIVERGENCE = "likelihood", "interview", "divergence.mean"
FLUENCY, VARIETY = "coherence.fluency", "coherence.variety"
_NUMBERS = {LIKELIHOOD, JUDGED, DIVERGENCE, FLUENCY, VARIETY}
_DIRECTIONS = (-1.0, 1.0)


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """What was measured at one layer and coefficient.

    Attributes:
        layer: 0-based decoder block.
        share: Length of what is added, as a share of the residual norm at this layer.
        coefficient: The same as a factor on the vector.
        shift: Shift of the likelihood towards the pole, in nats per token.
        judge: Shift of the judge's mean towards the pole, on the 1-5 scale; ``None`` if it could
            not read any reply.
        divergence: Mean KL(steered || base) on the steered model's own replies, nats per token;
            ``None`` if it gave none.
        fluency: Perplexity of the unsteered model's own replies over that of these, both under
            the unsteered model, at most 1.
        readable: Share of the replies that the judge can score.
        variety: Share of distinct word pairs over that of the unsteered replies, at most 1.
    """

    layer: int
    share: float
    coefficient: float
    shift: float
    judge: float | None
    divergence: float | None
    fluency: float
    readable: float
    variety: float

    @property
    def coherence(self) -> float:
        """The least of fluency, readability and variety, in [0, 1]; 1 is the unsteered model.

        The least, because each misses what another shows: a loop is likely, and word salad is
        varied.
        """
        return min(self.fluency, self.readable, self.variety)


def usable(curve: Sequence[CurvePoint], floor: float) -> list[CurvePoint]:
    """Return the points of one layer that can be used, by share.

    In each direction these are the points before the first one that is less coherent than
    ``floor``, or that moves the trait no further than the point before it.
    """
    kept: list[CurvePoint] = []
    for direction in _DIRECTIONS:
        reached = 0.0
        side = [point for point in curve if direction * point.share > 0]
        for point in sorted(side, key=lambda point: abs(point.share)):
            if point.coherence < floor or direction * (point.shift - reached) <= 0:
                break
            reached = point.shift
            kept.append(point)
    return sorted(kept, key=lambda point: point.share)


def next_shares(curve: Sequence[CurvePoint], shares: Sequence[float], floor: float) -> list[float]:
    """Return the shares to measure next: one for each direction that has not ended.

    A direction ends with its first point that is not usable; that point is part of the curve.

    Args:
        curve: What has been measured at one layer.
        shares: Positive and rising; both directions take them.
        floor: Lowest coherence to accept.
    """
    measured = {point.share for point in curve}
    good = {point.share for point in usable(curve, floor)}
    found = []
    for direction in _DIRECTIONS:
        ahead = [direction * share for share in shares if direction * share not in good]
        found += [share for share in ahead[:1] if share not in measured]
    return found


def swing(curve: Sequence[CurvePoint], floor: float) -> float:
    """Return how far the usable part of a curve moves the trait, from end to end; nats per token.

    A direction without a usable point adds nothing.
    """
    shifts = [0.0, *(point.shift for point in usable(curve, floor))]
    return max(shifts) - min(shifts)


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
        run = Run(worker.store.path.parent)
        batch = [Point(BASE, 0.0, seed)]
        while batch:
            yield batch
            points = self.points(run)
            batch = [
                Point(arm_of(found.layer), share * found.unit, seed)
                for found in self.layers
                for share in next_shares(
                    [p for p in points if p.layer == found.layer], self.shares, self.floor
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
        found = run.readings()
        ours = found[found["judge"].isin(["", StatementJudge.name])]
        cells: dict[tuple[str, float], pd.DataFrame] = {
            (label, strength): rows.set_index("measure")
            for (label, strength), rows in ours.groupby(["intervention", "strength"])
            if set(rows["measure"]) >= _NUMBERS
        }
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
        kl = float(cell.at[DIVERGENCE, "value"])
        return CurvePoint(
            layer=found.layer,
            share=share,
            coefficient=share * found.unit,
            shift=float(moved[LIKELIHOOD]),
            judge=None if math.isnan(moved[JUDGED]) else float(moved[JUDGED]),
            divergence=None if math.isnan(kl) else kl,
            # An empty reply is neither fluent nor varied.
            fluency=float(cell["value"].fillna(0.0)[FLUENCY]),
            readable=float(scored / (scored + unscored)),
            variety=float(cell["value"].fillna(0.0)[VARIETY]),
        )


def arm_of(layer: int) -> str:
    """Return the label of a layer in the results."""
    return f"layer {layer}"


@dataclass(frozen=True, slots=True)
class Choice:
    """The layer at which a vector steers best, and the strengths that are usable there.

    Attributes:
        pole: What the vector points to.
        label: Label of the vector.
        floor: Lowest coherence that was accepted.
        layers: The evidence of every layer that was examined.
        verified: Layers in the order in which the evidence ranks them; each has a curve.
        curves: What was measured by generation, layer after layer, each by share.
        part: The part of the statements that decided; the vector may have been extracted from it.
        made_from: The recipe, and the content of its inputs.
    """

    pole: Pole
    label: str
    floor: float
    layers: Sequence[Evidence]
    verified: Sequence[int]
    curves: Sequence[CurvePoint]
    part: str
    made_from: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not any(swing(self.curve(layer), self.floor) for layer in self.verified):
            raise DataError(
                f"{self.label}: no strength at layers {list(self.verified)} moves the trait and "
                f"keeps coherence above the floor {self.floor:g}; use smaller shares, or a lower "
                "floor"
            )

    @property
    def layer(self) -> int:
        """The layer whose usable curve moves the trait furthest; of equals, the best ranked."""
        return max(self.verified, key=lambda layer: swing(self.curve(layer), self.floor))

    @property
    def coefficients(self) -> tuple[float, float]:
        """The lowest and the highest usable coefficient; 0 where a direction has none."""
        points = usable(self.curve(self.layer), self.floor)
        found = [0.0, *(point.coefficient for point in points)]
        return min(found), max(found)

    @property
    def evidence(self) -> Evidence:
        """The evidence of the chosen layer."""
        return next(found for found in self.layers if found.layer == self.layer)

    def curve(self, layer: int) -> list[CurvePoint]:
        """Return what was measured at a layer, by share."""
        return [point for point in self.curves if point.layer == layer]

    def curve_table(self) -> pd.DataFrame:
        """Return one row for each point that was measured."""
        used = {
            (p.layer, p.share) for v in self.verified for p in usable(self.curve(v), self.floor)
        }
        return pd.DataFrame(
            asdict(point)
            | {"coherence": point.coherence, "usable": (point.layer, point.share) in used}
            for point in self.curves
        )

    def layer_table(self) -> pd.DataFrame:
        """Return one row for each layer that was examined."""
        ranks = {layer: rank for rank, layer in enumerate(self.verified, start=1)}
        swings = {layer: swing(self.curve(layer), self.floor) for layer in self.verified}
        table = pd.DataFrame(
            asdict(found)
            | asdict(found.separation)
            | {"unit": found.unit, "rank": ranks.get(found.layer), "swing": swings.get(found.layer)}
            for found in self.layers
        )
        return table.drop(columns="separation").astype({"rank": "Int64", "swing": "float64"})

    def record(self) -> dict[str, Any]:
        """Return the choice as JSON-like data, nine digits of every number."""
        return dict(
            rounded(
                {
                    "kind": "choice",
                    "format": 1,
                    "layer": self.layer,
                    "coefficients": list(self.coefficients),
                    "unit": self.evidence.unit,
                    "pole": str(self.pole),
                    "label": self.label,
                    "part": self.part,
                    "floor": self.floor,
                    "ranked": list(self.verified),
                    "layers": _rows(self.layer_table()),
                    "curve": _rows(self.curve_table()),
                }
            )
        )


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table, with ``None`` for missing values."""
    return list(json.loads(table.to_json(orient="records", double_precision=15)))
