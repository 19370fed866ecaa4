"""Judging: stored answers are rated, once, by whoever has not rated them yet."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from personality_vector.errors import RecipeError
from personality_vector.progress import progress
from personality_vector.study.store.store import FILE, Judged, Planned, Store, key_of
from personality_vector.subject.identity import digest_of
from personality_vector.subject.protocols import Cell, Judge, Measure, Quality, Rubric, rated
from personality_vector.subject.subject import Subject
from personality_vector.traits import Pole


def judges_of(measure: Measure) -> Sequence[Judge]:
    """Return who rates the answers of a measure, if anybody does."""
    return tuple(getattr(measure, "judges", ()))


def rubrics_of(measure: Measure) -> Sequence[Rubric]:
    """Return what the answers of a measure are rated for."""
    return tuple(getattr(measure, "rubrics", ()))


def judge_key(judge: Judge, rubric: Rubric) -> str:
    """Return the digest that scores are kept under."""
    return digest_of(judge.identity(), rubric)


def judge_cell(store: Store, cell: Cell, base: Cell, judge: Judge, rubric: Rubric) -> bool:
    """Let a judge rate those answers of a cell that it has not rated yet.

    Args:
        store: Where the answers are.
        cell: Whose answers.
        base: The cell of the base with the same measure and seed.
        judge: Ready for use.
        rubric: What for.

    Returns:
        Whether all answers are rated; ``False`` if another process is at it.
    """
    key = judge_key(judge, rubric)
    if not store.unscored(cell, rubric, key):
        return True
    with store.holding(lambda: [f"{key_of(cell)}|{key}"]) as mine:
        if not mine:
            return False
        answers = store.with_base_replies(store.unscored(cell, rubric, key), base)
        scores = rated(judge, rubric, list(answers.values()))
        store.write_scores(key, rubric.trait, dict(zip(answers, scores, strict=True)))
    return True


def judge_run(folder: Path, judge: Judge) -> int:
    """Let one more judge rate every stored answer of the latest recipe of a run.

    Returns:
        The number of cells with answers.

    Raises:
        CheckpointError: There is no run.
        RecipeError: The run has no answers, or a judge of this name with other scores.
    """
    with Store.open(folder / FILE) as store:
        rubrics = {name: [_rubric(row) for row in rows] for name, rows in store["rubrics"].items()}
        cells = [row for row in store.planned() if rubrics.get(row.name)]
        if not cells:
            raise RecipeError(f"{folder}: holds no answers to judge; no measure of it asks for any")
        judged = [
            Judged(name, judge.name, rubric.trait, judge_key(judge, rubric))
            for name, found in rubrics.items()
            for rubric in found
        ]
        store.require_same_judge(judged)
        ready = judge.prepare(_base_of(store))
        for row in progress(cells, "judge"):
            for rubric in rubrics[row.name]:
                judge_cell(store, row.cell, _base_cell(row), ready, rubric)
        store.judge_too(judged)
        store.note(judges={**store["judges"], judge.name: quality_of(judge)})
    return len(cells)


def described(rubric: Rubric) -> dict[str, Any]:
    """Return a rubric as JSON-like data."""
    return asdict(rubric) | {"pole": str(rubric.pole) if rubric.pole else None}


def quality_of(judge: Judge) -> dict[str, Any]:
    """Return the scale of a judge, and how good it is, where it says so."""
    quality: Sequence[Quality] = getattr(judge, "quality", tuple)()
    return {"scale": list(judge.scale), "quality": [asdict(number) for number in quality]}


def _rubric(row: dict[str, Any]) -> Rubric:
    return Rubric(**{**row, "pole": Pole.parse(row["pole"]) if row["pole"] else None})


def _base_cell(row: Planned) -> Cell:
    cell = row.cell
    return Cell(cell.base, cell.base, 0.0, cell.measure, cell.seed)


def _base_of(store: Store) -> Subject:
    """Return the base, which only some judges read."""
    base = store["base"]
    return Subject.load(base["path"], dtype=base["dtype"], device=base["device"])
