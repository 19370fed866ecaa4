"""A choice of layer and strengths, the evidence for it, and its files."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from personality_vector.errors import DataError
from personality_vector.files import AtomicDirectory
from personality_vector.manifest import rounded, write_manifest
from personality_vector.study.choose.layers import Evidence
from personality_vector.study.choose.scan import CurvePoint, swing, usable
from personality_vector.traits import Pole

RECORD, CURVE, LAYERS = "choice.json", "curve.csv", "layers.csv"


@dataclass(frozen=True, slots=True)
class Choice:
    """The layer at which a vector steers best, and how far it can be turned up there.

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
    def lowest(self) -> float:
        """The lowest coefficient that is usable; 0 if the vector cannot be subtracted."""
        return min(self._coefficients)

    @property
    def highest(self) -> float:
        """The highest coefficient that is usable; 0 if the vector cannot be added."""
        return max(self._coefficients)

    @property
    def evidence(self) -> Evidence:
        """The evidence of the chosen layer."""
        return next(found for found in self.layers if found.layer == self.layer)

    @property
    def _coefficients(self) -> list[float]:
        return [0.0, *(point.coefficient for point in usable(self.curve(self.layer), self.floor))]

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
                    "coefficients": [self.lowest, self.highest],
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

    def save(
        self, out: Path, *, force: bool, draw: Callable[["Choice", Path], object] | None = None
    ) -> None:
        """Write ``choice.json``, ``curve.csv``, ``layers.csv`` and a manifest.

        The folder appears whole, or not at all.

        Args:
            out: Must not exist, unless ``force``.
            force: Replace a result that this tool wrote.
            draw: Draws the choice into the folder; see :func:`report.choice.draw_choice`.

        Raises:
            OutputExistsError: ``out`` exists.
        """
        record = self.record() | {"made_from": self.made_from}
        with AtomicDirectory(out, kind="choice", force=force) as partial:
            (partial / RECORD).write_text(
                json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n",
                encoding="utf-8",
            )
            for name, table in ((CURVE, self.curve_table()), (LAYERS, self.layer_table())):
                table.to_csv(partial / name, index=False, float_format="%.9g")
            if draw is not None:
                draw(self, partial)
            chosen = {key: record[key] for key in ("layer", "coefficients")}
            write_manifest(partial, "choice", {**self.made_from, "choice": chosen})


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of a table, with ``None`` for missing values."""
    return list(json.loads(table.to_json(orient="records", double_precision=15)))
