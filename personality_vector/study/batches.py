"""Batches that points of one intervention share: which do, and how their cells are asked."""

import logging
import math
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from personality_vector.errors import RowsError, blame
from personality_vector.study.design import BASE, Point
from personality_vector.subject import Cell, Measure, batched
from personality_vector.subject.batch import Share, together
from personality_vector.subject.subject import Subject

if TYPE_CHECKING:
    from personality_vector.study.study import Study

log = logging.getLogger(__name__)

Cells = Mapping[Point, Mapping[Cell, Measure]]
"""What is to be measured at some points."""


@dataclass
class Batches:
    """Says which points of a study share batches: seeds of one strength, and strengths by row.

    The base does not share, since its divergence from itself is exactly 0 in its own batches only.

    Attributes:
        study: The study.
        workers: Processes that share the points, so that each has some.
    """

    study: "Study"
    workers: int = 1
    _alone: set[str] = field(default_factory=set)
    """Labels of interventions whose strengths do not share a batch, which was said."""

    def of(self, points: Sequence[Point], measures: Sequence[Measure]) -> list[Sequence[Point]]:
        """Return the points in groups that share batches.

        A group has no more points than fill a batch of a measure, than any measure that shares can
        keep at once, or than there are for each worker.
        """
        most = min(
            max(getattr(measure, "points_per_batch", 1) for measure in measures),
            *(one.most_points for one in filter(shares, measures) if hasattr(one, "most_points")),
            math.ceil(len(points) / self.workers),
        )
        if self.study.batch_strengths == "never" or most < 2:
            return [[point] for point in points]
        same: dict[Any, list[Point]] = {}
        for point in points:
            same.setdefault(self._key(point), []).append(point)
        return [group for one in same.values() for group in batched(one, most)]

    def refuse(self, points: Sequence[Point], reason: RowsError) -> None:
        """Measure the strengths of an intervention one after another from now on.

        Another group of its points may have been made before, and is refused as well.

        Raises:
            RowsError: The points have one strength already, or must not be rounded.
        """
        label = points[0].label
        if self.study.is_unrounded(label):
            raise RowsError(f"{label}: {reason}; leave out batch_strengths: unrounded") from reason
        if len({point.strength for point in points}) == 1:
            raise reason
        if label not in self._alone:
            self._say(label, str(reason))

    def _key(self, point: Point) -> tuple[Any, ...]:
        label, strength, seed = point
        if label == BASE or strength == 0.0:
            return point
        own = id(self.study.arm(label).at(seed))
        return (label, own) if self._is_by_row(label) else (label, own, strength)

    def _is_by_row(self, label: str) -> bool:
        """Return whether the strengths of an intervention share batches; say once if not."""
        arm = self.study.arm(label)
        if label in self._alone:
            return False
        if not all(hasattr(one, "by_row") for one in arm.by_seed.values()):
            self._say(label, "it cannot give each row of a batch a strength of its own")
        elif (
            arm.is_of_weights
            and self.study.dtype != "float32"
            and not self.study.is_unrounded(label)
        ):
            self._say(
                label,
                f"each is rounded to {self.study.dtype}; with batch_strengths: unrounded they "
                "share batches and are not rounded",
            )
        return label not in self._alone

    def _say(self, label: str, reason: str) -> None:
        self._alone.add(label)
        several = len(set(self.study.arm(label).strengths) - {0.0}) > 1
        if several and multiprocessing.parent_process() is None:
            log.warning("%s: its strengths are measured one after another: %s", label, reason)


def split(cells: Cells) -> tuple[Cells, Cells]:
    """Return the cells that share batches, if those of two points do, and the others."""
    shared, alone = (
        {
            point: found
            for point, own in cells.items()
            if (found := {cell: m for cell, m in own.items() if shares(m) == does})
        }
        for does in (True, False)
    )
    return (shared, alone) if len(shared) > 1 else ({}, cells)


def shares(measure: Measure) -> bool:
    """Return whether a batch has room for another point: a full one gains nothing."""
    return getattr(measure, "points_per_batch", 1) > 1


def collected_together(
    subject: Subject,
    cells: Cells,
    ready: Mapping[Cell, Measure],
    memories: Mapping[Point, Any],
    *,
    is_by_row: bool,
) -> dict[Cell, tuple[Any, float]]:
    """Return what is collected in cells that share batches, and the share of each of the seconds.

    Args:
        subject: What is asked.
        cells: Those of some points; a measure has its cells at all or some of them.
        ready: The measures, prepared.
        memories: The replies of each point, which are added to.
        is_by_row: Whether each row has the strength of its point; else all have one strength.
    """
    same: dict[str, list[tuple[Point, Cell]]] = {}
    for point, own in cells.items():
        for cell, measure in own.items():
            same.setdefault(measure.name, []).append((point, cell))
    collected: dict[Cell, tuple[Any, float]] = {}
    for rows in same.values():
        started = time.monotonic()
        shares = [
            Share(
                partial(_collected, ready[cell], point),
                point.strength if is_by_row else None,
                memories[point],
            )
            for point, cell in rows
        ]
        found = together(subject, shares)
        seconds = (time.monotonic() - started) / len(rows)
        for (_, cell), one in zip(rows, found, strict=True):
            collected[cell] = one, seconds
    return collected


def _collected(measure: Measure, point: Point, subject: Subject) -> Any:
    with blame(measure=measure.name, strength=f"{point.strength:g}", seed=point.seed):
        return measure.collect(subject, point.seed)
