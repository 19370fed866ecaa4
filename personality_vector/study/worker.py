"""Work on a study: measuring unclaimed points cell by cell, and rating their answers."""

import logging
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from personality_vector.errors import (
    DataError,
    PersonalityVectorError,
    RecipeError,
    RowsError,
    blame,
)
from personality_vector.progress import progress, silence
from personality_vector.study.batches import Batches, Cells, collected_together, split
from personality_vector.study.database import Planned
from personality_vector.study.design import Point, require_distinct
from personality_vector.study.judging import (
    Background,
    Work,
    among,
    compares_all,
    everything,
    is_remote,
    judges_of,
    prepared,
    quality_of,
    rubrics_of,
)
from personality_vector.study.store import FILE, Store
from personality_vector.subject import Cell, Findings, Judge, Measure, Place, rated_for
from personality_vector.subject.subject import Subject

if TYPE_CHECKING:
    from personality_vector.study.study import Study

log = logging.getLogger(__name__)

# Seconds between two looks at what other workers have finished.
_POLL_SECONDS = 0.5


@dataclass
class Worker:
    """One process at work on a study; the model is loaded when the first cell is missing.

    Attributes:
        study: The study.
        store: Its results.
        workers: Processes that were started for it, this one included.
    """

    study: "Study"
    store: Store
    workers: int = 1
    _prepared: dict[str, Any] = field(default_factory=dict)
    _taken: list[tuple[Sequence[Point], Sequence[Measure]]] = field(default_factory=list)

    @cached_property
    def base(self) -> Subject:
        """The loaded base. It never changes, so what it replied is remembered."""
        return replace(
            Subject.load(
                self.study.base,
                dtype=self.study.dtype,
                device=self.study.device,
                template=self.study.template,
            ),
            memory={},
        )

    @cached_property
    def batches(self) -> Batches:
        """Which points share batches."""
        return Batches(self.study, self.workers)

    @cached_property
    def background(self) -> Background:
        """Servers that rate what is finished, while this worker measures."""
        return Background(self.store.path, self._ready)

    def work(self) -> None:
        """Measure everything that the design asks for and the store does not hold."""
        with self.background:
            for points in self.study.design.batches(self):
                self.take(points, self.study.measures)
            for points, measures in self._taken:
                self.rate(points, measures)
        self.plan((), ())  # refused if another recipe was started meanwhile
        if self.store["shard"] is not None:
            return  # others hold answers that a judge may have to see
        for judge in {one.name: one for m in self.study.measures for one in judges_of(m)}.values():
            self._rate_among_all(judge)

    def _rate_among_all(self, judge: Judge) -> None:
        """Show a judge all answers, and have it rate them now if it had to wait for them."""
        rubrics = {m.name: rubrics_of(m) for m in self.study.measures if judge in judges_of(m)}
        found = among(self.store, judge, rubrics)
        if compares_all(judge):
            works, judged = everything(found, rubrics, self.store.planned())
            self._finish(works)
            self.store.add_judges(judged, {found.name: quality_of(found)})

    def take(self, points: Sequence[Point], measures: Sequence[Measure]) -> None:
        """Plan and measure points; servers may still be rating then."""
        self.plan(points, measures)
        self.measure(points, measures)
        self._taken.append((points, measures))

    def plan(self, points: Sequence[Point], measures: Sequence[Measure]) -> None:
        """Add the cells of points to the plan of the store, in order."""
        planned = (
            Planned(point.label, point.strength, measure.name, self.study.cell(point, measure))
            for point in points
            for measure in measures
        )
        self.store.plan(self.study.digest, planned)

    def measure(self, points: Sequence[Point], extra: Sequence[Measure] = ()) -> None:
        """Measure ``points``, and return when all are finished, by this worker or others.

        Only judges on servers may still be rating then.

        Args:
            points: The points.
            extra: Measures to take there instead of those of the study.
        """
        measures = extra or self.study.measures
        todo = self._missing(points, measures)
        for point in points:
            if point not in todo:
                self._rate_beside(point, measures)
        while todo:
            for group in progress(self.batches.of(todo, measures), "measure"):
                self._measure_group(group, measures)
                for point in group:
                    self._rate_beside(point, measures)
            todo = self._missing(todo, measures)
            if todo:
                time.sleep(_POLL_SECONDS)
        self._judge(points, measures, on_servers=False)

    def rate(self, points: Sequence[Point], measures: Sequence[Measure]) -> None:
        """Return when servers, too, have rated the answers of ``points``."""
        self.background.wait()
        self._judge(points, measures, on_servers=True)

    def _missing(self, points: Iterable[Point], measures: Sequence[Measure]) -> list[Point]:
        return [
            point
            for point in points
            if not all(self.store.is_finished(self.study.cell(point, m)) for m in measures)
        ]

    def _measure_group(self, points: Sequence[Point], measures: Sequence[Measure]) -> None:
        """Measure what is missing at points that share a batch, or at one point."""
        label = points[0].label
        cells = {self.study.cell(p, measure): (p, measure) for p in points for measure in measures}
        try:
            with self.store.claimed(cells) as mine, blame(intervention=label):
                todo: dict[Point, dict[Cell, Measure]] = {}
                for cell in mine:
                    point, measure = cells[cell]
                    todo.setdefault(point, {})[cell] = measure
                for cell, found, seconds in self._found_together(todo):
                    self.store.write(cell, found, seconds)
        except RowsError as reason:
            self.batches.refuse(points, reason)
            for group in self.batches.of(points, measures):
                self._measure_group(group, measures)

    def _found_together(self, todo: Cells) -> Iterator[tuple[Cell, Any, float]]:
        """Yield what is found at points: first what shares batches, then point by point."""
        shared, alone = split(todo)
        memories: dict[Point, Any] = {point: {} for point in todo}
        if shared:
            ready = {cell: self._ready(m) for own in shared.values() for cell, m in own.items()}
            several = len({point.strength for point in shared}) > 1
            with self._applied(list(shared)) as subject:
                collected = collected_together(subject, shared, ready, memories, is_by_row=several)
            yield from self._finished(ready, collected)
        for point, cells in alone.items():
            yield from self._found(cells, point, memories[point])

    def _found(
        self, cells: Mapping[Cell, Measure], point: Point, memory: dict[str, Any]
    ) -> Iterator[tuple[Cell, Any, float]]:
        """Yield what is found at one point, whose ``memory`` holds the replies drawn so far."""
        ready = {cell: self._ready(measure) for cell, measure in cells.items()}
        collected = {}
        with self._applied([point], memory) as subject:
            for cell, measure in ready.items():
                started = time.monotonic()
                collected[cell] = measure.collect(subject, point.seed), time.monotonic() - started
        yield from self._finished(ready, collected)

    def _finished(
        self, ready: Mapping[Cell, Measure], collected: Mapping[Cell, tuple[Any, float]]
    ) -> Iterator[tuple[Cell, Any, float]]:
        for cell, (found, seconds) in collected.items():
            started = time.monotonic()
            findings = _checked(ready[cell], ready[cell].finish(self.base, found))
            yield cell, findings, seconds + time.monotonic() - started

    def _applied(
        self, points: Sequence[Point], memory: dict[str, Any] | None = None
    ) -> AbstractContextManager[Subject]:
        """Return the subject at points of one intervention."""
        label, strength, seed = points[0]
        if self.study.is_base(points[0]):
            return nullcontext(self.base)
        intervention: Any = self.study.arm(label).at(seed)
        subject = replace(self.base, memory=memory)
        strengths = {point.strength for point in points}
        if len(strengths) > 1 or self.study.is_unrounded(label):
            found: AbstractContextManager[Subject] = intervention.by_row(subject, sorted(strengths))
        else:
            found = intervention.applied(subject, strength)
        return found

    def _ready(self, one: Measure | Judge) -> Any:
        """Return a measure or judge, prepared once."""
        key = one.identity()
        if key not in self._prepared:
            self._prepared[key] = (
                prepared(one, self.store.path.parent, lambda: self.base)
                if isinstance(one, Judge)
                else one.prepare(self.base)
            )
        return self._prepared[key]

    def _judge(
        self, points: Sequence[Point], measures: Sequence[Measure], *, on_servers: bool
    ) -> None:
        """Have judges rate what is unrated, and return when nothing is left."""
        todo = [
            work
            for point in points
            for work in self._ratings(point, measures, on_servers=on_servers)
        ]
        self._finish(todo)

    def _finish(self, todo: Sequence[Work]) -> None:
        """Return when all is rated, by this worker or others."""
        while todo := [work for work in todo if not work.done(self.store, self._ready)]:
            time.sleep(_POLL_SECONDS)

    def _rate_beside(self, point: Point, measures: Sequence[Measure]) -> None:
        """Have servers rate what is finished, while the next point is measured."""
        for work in self._ratings(point, measures, on_servers=True):
            base = work.cell._replace(intervention=work.cell.base, strength=0.0)
            # The base first: others are compared with it.
            if self.store.is_finished(base) and self.store.is_finished(work.cell):
                self.background.add(work)

    def _ratings(
        self, point: Point, measures: Sequence[Measure], *, on_servers: bool
    ) -> list[Work]:
        """Return what is to be rated of a point, whether or not it is rated already."""
        return [
            Work(self.study.cell(point, measure), Place(measure.name, *point), judge, rubric)
            for measure in measures
            for judge in judges_of(measure)
            if is_remote(judge) == on_servers and not compares_all(judge)
            for rubric in rated_for(judge, rubrics_of(measure))
        ]


def require_measures(measures: Sequence[Measure]) -> None:
    """Refuse measures and judges that could be confused in the tables.

    Raises:
        RecipeError: Two have the same name.
    """
    names = [measure.name for measure in measures]
    require_distinct("measures", names, "give one of them a name")
    inside = [name for name in names if any(name.startswith(f"{other}.") for other in names)]
    if inside:
        raise RecipeError(
            f"{inside[0]}: begins with the name of another measure; give it another name"
        )
    identities: dict[str, str] = {}
    for measure in measures:
        judges, rubrics = judges_of(measure), rubrics_of(measure)
        remedy = "give one of them a name"
        require_distinct(f"judges of {measure.name}", [one.name for one in judges], remedy)
        require_distinct(f"rubrics of {measure.name}", [one.trait for one in rubrics], remedy)
        for judge in judges:
            if identities.setdefault(judge.name, judge.identity()) != judge.identity():
                raise RecipeError(f"two judges that differ are called {judge.name}; {remedy}")


def _checked(measure: Measure, found: Any) -> Findings:
    """Return what a measure found, once its numbers are known to have its name."""
    if not isinstance(found, Findings):
        raise DataError(f"{measure.name}: finish returns Findings, not {type(found).__name__}")
    for reading in found.readings:
        if reading.measure != measure.name and not reading.measure.startswith(f"{measure.name}."):
            raise DataError(
                f"{measure.name}: found {reading.measure}; the name of a number must be "
                f"{measure.name}, or begin with it and a dot"
            )
    return found


def packed(study: "Study") -> bytes:
    """Return a study as bytes for another process.

    Raises:
        RecipeError: Something in it cannot be pickled; it is named.
    """
    arms = [(arm.label, arm) for arm in study.arms]
    measures = [(measure.name, measure) for measure in study.measures]
    for name, part in [*arms, *measures, ("the design", study.design), ("the study", study)]:
        try:
            pickle.dumps(part)
        except Exception as error:
            raise RecipeError(
                f"{name} cannot be pickled, which workers above 1 need ({error}); define its class "
                "at the top level of a module, or use workers=1"
            ) from error
    return pickle.dumps(study)


class Helpers:
    """Other processes that work on the same folder for the length of a ``with`` block."""

    def __init__(self, packed: bytes, folder: Path, helpers: int) -> None:
        context, workers = multiprocessing.get_context("spawn"), helpers + 1
        self._before = torch.get_num_threads()
        self._threads = max(1, self._before // workers)
        self._helpers = [
            context.Process(target=_help, args=(packed, folder, self._threads, workers))
            for _ in range(helpers)
        ]

    def __enter__(self) -> None:
        torch.set_num_threads(self._threads)
        for helper in self._helpers:
            helper.start()

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for helper in self._helpers:
            if kind is not None:
                helper.terminate()
            helper.join()
            if helper.exitcode and kind is None:
                log.error(
                    "a worker process failed (exit code %d), and the others did its work; a "
                    "script that asks for workers needs if __name__ == '__main__', and must "
                    "define its classes at the top level",
                    helper.exitcode,
                )
        torch.set_num_threads(self._before)


def _help(packed: bytes, folder: Path, threads: int, workers: int) -> None:
    """Work beside the process that started this one, and not longer than that."""
    silence()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the other ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    try:
        with Store.open(folder / FILE) as store:
            study = pickle.loads(packed)  # noqa: S301  (made by this very program)
            Worker(study, store, workers).work()
    except PersonalityVectorError as error:
        # The others meet the same error in the same cell, or do what this one could not.
        sys.stderr.write(f"a worker process: {' '.join(str(error).split())}\n")
        sys.exit(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
