"""``pvec sweep``, ``compare``, ``eval`` and ``report``: measure and draw."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from personality_vector.cli import options
from personality_vector.cli.judge import billed

if TYPE_CHECKING:
    from personality_vector.study.recipe import CompareRecipe, EvalRecipe, SweepRecipe

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="Directory of a sweep, compare or eval.")
]


def check(recipe: "SweepRecipe | EvalRecipe") -> dict[str, Any]:
    """Open every input."""
    from personality_vector.study.recipe import open_study

    study = open_study(recipe)
    points = 1 + sum(len(arm.strengths) for arm in study.arms)
    return {
        "base_identity": study.base_identity,
        "identities": {
            label if seed is None else f"{label}, seed {seed}": identity
            for (label, seed), identity in study.identities.items()
        },
        "cells": points * len(study.measures) * len(study.seeds),
    }


def sweep(recipe: "SweepRecipe", out: Path, force: bool, as_json: bool) -> None:
    """Measure interventions at many strengths.

    An interrupted sweep resumes, and after a change of RECIPE only what is missing is measured.
    Several processes may work on one --out. No checkpoint is written.
    """
    _measure(recipe, out, "sweep", force, as_json)


def compare(recipe: "CompareRecipe", out: Path, force: bool, as_json: bool) -> None:
    """Compare interventions at equal effect, or at equal cost.

    A sweep, then the strengths at which all of them move one pole equally far, or another number.
    """
    _measure(recipe, out, "compare", force, as_json)


def evaluate(recipe: "EvalRecipe", out: Path, force: bool, as_json: bool) -> None:
    """Measure one model as it is."""
    _measure(recipe, out, "eval", force, as_json)


def report(
    run: RunArgument,
    others: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[OTHER]...", help="Comparisons on other poles, to show cross-talk together."
        ),
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the figures and report of a run."""
    from personality_vector.report.page import write_report

    page = write_report(run, *(others or ()))
    options.show({"report": str(page)}, as_json=as_json, text=lambda: f"report: {page}")


def _measure(
    recipe: "SweepRecipe | EvalRecipe", out: Path, kind: str, force: bool, as_json: bool
) -> None:
    """Run a study, write its report and manifest, and print its tables."""
    from personality_vector.report.page import NO_MATCH, write_report
    from personality_vector.report.tables import print_frame
    from personality_vector.study.judging import judges_of
    from personality_vector.study.recipe import open_study
    from personality_vector.study.tables import remarks, tables_of

    study = open_study(recipe)
    judges = [judge for one in study.measures for judge in judges_of(one)]
    with options.resumable(out), billed(judges, out) as bills:
        run = study.run(out, force=force)
    page = write_report(run)
    run.write_manifest(kind)
    tables, notes = tables_of(run), remarks(run) if run["pole"] is not None else []
    if "measures" in tables:
        tables.pop("side effects", None)  # without an intervention they are among the measures
    if as_json:
        rows: dict[str, Any] = {"out": str(run.folder), "report": str(page), "remarks": notes}
        rows |= {title: frame.to_dict("records") for title, frame in tables.items()} | bills
        options.show(options.without_nan(rows), as_json=True, text=str)
        return
    for title, frame in tables.items():
        print_frame(title, frame, if_empty=NO_MATCH)
    typer.echo("\n".join([*notes, f"report: {page}"]))
