"""The worker: takes points that nobody has, edits the base, measures, and writes cell by cell."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from personality_vector.errors import blame
from personality_vector.progress import progress
from personality_vector.study.design import BASE, Point
from personality_vector.study.judging import judge_cell, judge_key, judges_of, rubrics_of
from personality_vector.study.store.store import Store
from personality_vector.subject.protocols import Cell, Judge, Measure, Rubric
from personality_vector.subject.subject import Subject

if TYPE_CHECKING:
    from personality_vector.study.study import Study

_PATIENCE = 0.5
"""Seconds between two looks at what other workers have finished."""


class Worker:
    """One process at work on a study; the model is loaded when the first cell is missing."""

    def __init__(self, study: "Study", store: Store) -> None:
        self.study = study
        self.store = store
        self._prepared: dict[str, Any] = {}

    @cached_property
    def base(self) -> Subject:
        """The loaded base. It never changes, so what it replied is remembered."""
        loaded = Subject.load(self.study.base, dtype=self.study.dtype, device=self.study.device)
        return replace(loaded, memory={})

    def work(self) -> None:
        """Measure everything that the design asks for and the store does not hold."""
        for points in self.study.design.batches(self):
            self.store.plan(self.study.planned(points))
            self.measure(points)

    def measure(self, points: Sequence[Point], extra: Sequence[Measure] = ()) -> None:
        """Measure ``points``, and return when all of them are finished, by whomever.

        Args:
            points: Where.
            extra: What is measured there instead of the measures of the study.
        """
        measures = extra or self.study.measures
        todo = self._missing(points, measures)
        while todo:
            for point in progress(todo, "measure"):
                self._measure_point(point, measures)
            todo = self._missing(todo, measures)
            if todo:
                time.sleep(_PATIENCE)
        unrated = self._judge(points, measures)
        while unrated:
            time.sleep(_PATIENCE)
            unrated = self._judge(unrated, measures)

    def value(self, point: Point, measure: Measure, trait: str) -> float:
        """Return a number that has been measured at a point."""
        return self.store.value(self.study.cell(point, measure), measure.name, trait)

    def _missing(self, points: Iterable[Point], measures: Sequence[Measure]) -> list[Point]:
        return [
            point
            for point in points
            if not all(self.store.is_finished(self.study.cell(point, m)) for m in measures)
        ]

    def _measure_point(self, point: Point, measures: Sequence[Measure]) -> None:
        """Measure what is missing at one point, under one edit of the base."""
        cells = {self.study.cell(point, measure): measure for measure in measures}
        with self.store.claimed(cells) as mine, blame(intervention=point.label):
            if mine:
                for cell, found, seconds in self._found(
                    {cell: cells[cell] for cell in mine}, point
                ):
                    self.store.write(cell, found, seconds)

    def _found(self, cells: dict[Cell, Measure], point: Point) -> Iterator[tuple[Cell, Any, float]]:
        ready = {cell: self._ready(measure) for cell, measure in cells.items()}
        collected = {}
        with self._applied(point) as subject:
            for cell, measure in ready.items():
                started = time.monotonic()
                found = measure.collect(subject, point.seed)
                collected[cell] = found, time.monotonic() - started
        for cell, (found, seconds) in collected.items():
            started = time.monotonic()
            findings = ready[cell].finish(self.base, found)
            yield cell, findings, seconds + time.monotonic() - started

    def _applied(self, point: Point) -> AbstractContextManager[Subject]:
        """Return the subject at a point; strength 0 of anything is the base."""
        if point.label == BASE or point.strength == 0.0:
            return nullcontext(self.base)
        intervention = self.study.arm(point.label).at(point.seed)
        return intervention.applied(replace(self.base, memory={}), point.strength)

    def _ready(self, measure: Measure | Judge) -> Any:
        """Return a measure or judge, prepared once."""
        key = measure.identity()
        if key not in self._prepared:
            self._prepared[key] = measure.prepare(self.base)
        return self._prepared[key]

    def _judge(self, points: Sequence[Point], measures: Sequence[Measure]) -> list[Point]:
        """Let the judges rate what they have not rated yet; return where others are at it."""
        busy = []
        for point in points:
            done = [
                self._judge_cell(point, measure, judge, rubric)
                for measure in measures
                for judge in judges_of(measure)
                for rubric in rubrics_of(measure)
            ]
            if not all(done):
                busy.append(point)
        return busy

    def _judge_cell(self, point: Point, measure: Measure, judge: Judge, rubric: Rubric) -> bool:
        cell = self.study.cell(point, measure)
        if not self.store.unscored(cell, rubric, judge_key(judge, rubric)):
            return True
        base = self.study.cell(Point(BASE, 0.0, point.seed), measure)
        return judge_cell(self.store, cell, base, self._ready(judge), rubric)
