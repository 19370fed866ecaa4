"""Rating the stored answers of a run: now or later, and by servers beside the model."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Event, Thread
from typing import Any, NamedTuple

from personality_vector.errors import CheckpointError, RecipeError, foreign, some
from personality_vector.judges.spec import BaseJudge
from personality_vector.progress import progress
from personality_vector.study.claims import LEASE
from personality_vector.study.database import Judged, Planned, connected
from personality_vector.study.store import FILE, Store, key_of
from personality_vector.subject import (
    Cell,
    Judge,
    Measure,
    Place,
    Rubric,
    Template,
    digest_of,
    rated,
    rated_for,
)
from personality_vector.subject.subject import Subject
from personality_vector.traits import Pole

_LOOK_SECONDS = 0.2


class Work(NamedTuple):
    """Answers of a cell to rate: which, by whom and for what.

    Attributes:
        cell: The cell of the answers.
        place: The same, by the names of the recipe.
        judge: Who rates them.
        rubric: What they are rated for.
    """

    cell: Cell
    place: Place
    judge: Judge
    rubric: Rubric

    def done(self, store: Store, ready: Callable[[Judge], Judge]) -> bool:
        """Have the judge rate what it has not rated yet.

        Args:
            store: The store of the answers.
            ready: Prepares the judge, if there is something to rate.

        Returns:
            Whether all answers are rated; ``False`` if another process is rating them.
        """
        cell, key = self.cell, judge_key(self.judge, self.rubric)
        if not store.unscored(cell, self.rubric, key):
            return True
        prepared = ready(self.judge)
        with store.claims.held(lambda: [f"{key_of(cell)}|{key}"]) as mine:
            if mine:
                answers = store.unscored(cell, self.rubric, key, self.place)
                scores = rated(prepared, self.rubric, list(answers.values()))
                store.write_scores(key, self.rubric.trait, dict(zip(answers, scores, strict=True)))
            return bool(mine)


class Background:
    """A thread in which servers rate finished cells while the model generates the next.

    It begins with the first work that it gets. Local judges would compete with the model.
    """

    def __init__(self, path: Path, ready: Callable[[Judge], Judge]) -> None:
        self._path, self._ready = path, ready
        self._todo: SimpleQueue[Work | None] = SimpleQueue()
        self._ended: SimpleQueue[None] = SimpleQueue()
        self._added = 0
        self._is_over = Event()
        self._thread: Thread | None = None
        self._working: Judge | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._is_over.set()
        if self._working is not None:
            self._working.stop()  # type: ignore[attr-defined]
        self.wait()

    def add(self, work: Work) -> None:
        """Have some answers rated.

        Raises:
            PersonalityVectorError: A judge failed since the last call.
        """
        self._raise()
        if self._thread is None:
            self._ended, self._added = SimpleQueue(), 0
            self._thread = Thread(target=self._rate, daemon=True)
            self._thread.start()
        self._todo.put(work._replace(judge=self._ready(work.judge)))
        self._added += 1

    def wait(self) -> None:
        """Wait until everything is rated.

        Raises:
            PersonalityVectorError: A judge failed.
        """
        if self._thread is not None:
            self._todo.put(None)
            for _ in progress(range(self._added), "judge"):
                while self._thread.is_alive():
                    with suppress(Empty):
                        self._ended.get(timeout=_LOOK_SECONDS)
                        break
            self._thread.join()
            self._thread = None
        if not self._is_over.is_set():
            self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _rate(self) -> None:
        try:
            with connected(self._path) as connection:  # a connection belongs to one thread
                store = Store(self._path, connection, LEASE)
                while (work := self._todo.get()) is not None:
                    if not self._is_over.is_set():
                        self._working = work.judge
                        work.done(store, lambda judge: judge)
                    self._ended.put(None)
        except BaseException as error:  # noqa: BLE001  (the worker raises it)
            self._error = error


def judge_run(folder: Path, judge: Judge) -> int:
    """Have one more judge rate every stored answer of the latest recipe of a run.

    Returns:
        The number of cells with answers.

    Raises:
        CheckpointError: The run does not exist.
        RecipeError: The run has no answers, or another judge with this name.
        DataError: The judge rates answers that the run does not have.
    """
    damaged = foreign(CheckpointError, f"{folder / FILE}: its notes are damaged or were changed")
    with Store.open(folder / FILE) as store:
        with damaged:
            rubrics = {
                name: [
                    Rubric(**row | {"pole": row["pole"] and Pole.parse(row["pole"])})
                    for row in rows
                ]
                for name, rows in store["rubrics"].items()
            }
            planned = [row for row in store.planned() if rubrics.get(row.name)]
            cells = [row for row in planned if store.is_finished(row.cell)]
            path, *how = (str(store["base"][key]) for key in ("path", "dtype", "device"))
            template = Template(**store["base"].get("template", {}))
        if not cells:
            raise RecipeError(f"{folder}: has no answers to judge; only an interview gives answers")
        judge = among(store, judge, rubrics)
        works, judged = everything(judge, rubrics, cells)
        if not judged:
            raise RecipeError(
                f"{folder}: has no answers that {judge.name} rates; it rates for "
                f"{some(getattr(judge, 'rates', ()))}"
            )
        if not getattr(judge, "is_revised", False):
            store.require_same_judge(judged)
        ready = prepared(
            judge,
            folder,
            lambda: Subject.load(path, dtype=how[0], device=how[1], template=template),
        )
        for work in progress(works, "judge"):
            work.done(store, lambda _: ready)
        store.add_judges(judged, {judge.name: quality_of(judge)})
    return len(cells)


def among(store: Store, judge: Judge, rubrics: Mapping[str, Sequence[Rubric]]) -> Judge:
    """Return a judge for the answers of a run, once it has seen all of them if it has to.

    Args:
        store: The store of a run.
        judge: Who rates.
        rubrics: Measures that the judge rates, to what their answers are rated for.

    Raises:
        DataError: It has a rating of another answer.
    """
    shown = getattr(judge, "among", None)
    if shown is None:
        return judge
    found: Judge = shown(
        [
            (answer, answer.traits or [rubric.trait for rubric in rubrics[row.name]])
            for row in store.planned()
            if row.name in rubrics
            for answer in store.unscored(row.cell, None, "", place_of(row)).values()
        ]
    )
    return found


def compares_all(judge: Judge) -> bool:
    """Return whether a judge rates answers only when all of a run are there."""
    return bool(getattr(judge, "compares_all", False))


def everything(
    judge: Judge, rubrics: Mapping[str, Sequence[Rubric]], rows: Iterable[Planned]
) -> tuple[list[Work], list[Judged]]:
    """Return what a judge has to rate in cells, and what it is then noted for in the store."""
    asked = {name: rated_for(judge, found) for name, found in rubrics.items()}
    works = [
        Work(row.cell, place_of(row), judge, rubric)
        for row in rows
        for rubric in asked.get(row.name, ())
    ]
    judged = [
        Judged(name, judge.name, rubric.trait, judge_key(judge, rubric))
        for name, found in asked.items()
        for rubric in found
    ]
    return works, judged


def prepared(judge: Judge, folder: Path, base: Callable[[], Subject]) -> Judge:
    """Return a judge ready to rate the answers of a run; ``base`` is loaded if it is needed."""
    if is_remote(judge):
        ready: Judge = judge.billed_to(folder)  # type: ignore[attr-defined]
        return ready
    # Loading a model takes minutes, and what rates without it does not need it.
    own: Any = type(judge).prepare
    return judge if own is BaseJudge.prepare else judge.prepare(base())


def is_remote(judge: Judge) -> bool:
    """Return whether a server does the work of a judge."""
    return bool(getattr(judge, "is_remote", False))


def place_of(row: Planned) -> Place:
    """Return where in a study the answers of a planned cell were given."""
    return Place(row.name, row.label, row.strength, row.cell.seed)


def judges_of(measure: Measure) -> Sequence[Judge]:
    """Return the judges of a measure, if it has any."""
    return tuple(getattr(measure, "judges", ()))


def rubrics_of(measure: Measure) -> Sequence[Rubric]:
    """Return what the answers of a measure are rated for."""
    return tuple(getattr(measure, "rubrics", ()))


def judge_key(judge: Judge, rubric: Rubric) -> str:
    """Return the digest that scores are kept under."""
    return digest_of(judge.identity(), rubric)


def scale_of(one: Measure | Judge) -> list[float] | None:
    """Return the ends of a scale, if there is one."""
    return [float(end) for end in one.scale] if one.scale else None


def norms_of(measure: Measure) -> dict[str, Any]:
    """Return what people score in a measure, under ``norms``, if it says so."""
    norms = getattr(measure, "norms", None)
    return {} if norms is None else {"norms": norms.model_dump(mode="json")}


def quality_of(judge: Judge) -> dict[str, Any]:
    """Return the scale of a judge, and its quality if it reports one."""
    return {
        "scale": scale_of(judge),
        "quality": [asdict(number) for number in getattr(judge, "quality", tuple)()],
    }


def bills_of(judges: Iterable[Judge], folder: Path) -> list[dict[str, Any]]:
    """Return what servers were asked for a run, and at what price."""
    remote: list[Any] = [judge for judge in judges if is_remote(judge)]
    found = [judge.billed_to(folder).bill() for judge in remote]
    return [bill for bill in found if bill["requests"]]
