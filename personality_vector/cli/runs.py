"""``pvec sweep``, ``compare``, ``eval`` and ``report``: measure and draw."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from personality_vector.cli import options
from personality_vector.cli.judge import billed
from personality_vector.errors import some

if TYPE_CHECKING:
    from personality_vector.study.recipe import EvalRecipe, SweepRecipe
    from personality_vector.study.run import Run
    from personality_vector.study.study import Study

RunArguments = Annotated[
    list[Path], typer.Argument(metavar="RUN...", help="Directory of a sweep, compare or eval.")
]
Workers = Annotated[
    int, typer.Option("--workers", min=1, help="Processes of this machine that measure.")
]
OneShard = Annotated[
    str | None,
    typer.Option(
        "--shard", metavar="I/N", help="Measure one part of N, which `pvec report` unites."
    ),
]


def study_verb(kind: str, verb: str, says: str) -> Callable[..., None]:
    """Return the command that measures what a recipe of ``kind`` describes.

    ``kind`` says where the class of the recipe lies, such as ``study.recipe.SweepRecipe``. ``verb``
    is the kind of the manifest, and ``says`` the help.
    """

    def measure(
        recipe: options.RecipeArgument,
        settings: options.Settings = [],
        out: options.Out = None,
        workers: Workers = 1,
        shard: OneShard = None,
        dry_run: options.DryRun = False,
        force: options.Force = False,
        as_json: options.Json = False,
        quiet: options.Quiet = False,
    ) -> None:
        read, folder = options.read_by(kind, recipe, settings, out)
        study = _opened(read, shard)
        if shard is not None and out is None:
            folder = folder.with_name(f"{folder.name}-{shard.replace('/', '-of-')}")
        if dry_run:
            options.show_plan(read, _plan(study, workers), folder, as_json=as_json)
        else:
            _measure(study, folder, verb, workers, force, as_json)

    measure.__doc__ = says
    return measure


sweep = study_verb(
    "study.recipe.SweepRecipe",
    "sweep",
    """Measure interventions at many strengths.

    An interrupted sweep resumes, and after a change of RECIPE only what is missing is measured.
    Several processes may work on one --out. No checkpoint is written.
    """,
)
compare = study_verb(
    "study.recipe.CompareRecipe",
    "compare",
    """Compare interventions at equal effect, or at equal cost.

    A sweep, then the strengths at which all of them move one pole equally far, or another number. A
    --shard measures its part of the sweep; run the comparison again in the union of all shards.
    """,
)
evaluate = study_verb("study.recipe.EvalRecipe", "eval", """Measure one model as it is.""")


def report(
    runs: RunArguments,
    out: Annotated[
        Path | None, typer.Option("--out", help="Directory for the union of several RUNs.")
    ] = None,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:
    """Write the figures and report of a run.

    With --out, several runs of one recipe, such as its shards, are united in a folder that can be
    resumed and added to like any run. Without it, the report of a comparison also shows the
    cross-talk of comparisons on other poles.
    """
    from personality_vector.report.page import write_report
    from personality_vector.study.replacing import verb_of

    found: dict[str, Any] = {}
    if out is None:
        page = write_report(*runs)
    else:
        run, found = _united(runs, out)
        page = write_report(run)
        run.write_manifest(verb_of(run["recipe"]))
    options.show({"report": str(page), **found}, as_json=as_json, text=lambda: f"report: {page}")


def _united(runs: list[Path], out: Path) -> "tuple[Run, dict[str, Any]]":
    """Unite runs, and say what is still missing."""
    from personality_vector.study.replacing import verb_of
    from personality_vector.study.shards import absent, unite

    run, shards = unite(runs, out), absent(runs)
    finished = run.cells()["finished"]
    found: dict[str, Any] = {
        "out": str(out),
        "cells": len(finished),
        "finished": int(finished.sum()),
    }
    if missing := len(finished) - found["finished"]:
        reason = f" (no folder is shard {some(shards)})" if shards else ""
        typer.echo(
            f"{out}: {missing} of {len(finished)} cells are missing{reason}; unite them too, or "
            f"measure them with pvec {verb_of(run['recipe'])} RECIPE --out {out}",
            err=True,
        )
    return run, {**found, "absent": shards}


def _opened(recipe: "SweepRecipe | EvalRecipe", shard: str | None) -> "Study":
    """Return the study of a recipe, or of one shard of it."""
    from personality_vector.study.recipe import open_study
    from personality_vector.study.shards import Shard, sharded

    part = Shard.parse(shard) if shard is not None else None
    study = open_study(recipe)
    return study if part is None else sharded(study, part)


def _plan(study: "Study", workers: int) -> dict[str, Any]:
    """Return what was found in the inputs, and what measuring will take."""
    from personality_vector.study.estimate import estimated

    return {
        "base_identity": study.base_identity,
        "identities": {
            label if seed is None else f"{label}, seed {seed}": identity
            for (label, seed), identity in study.identities.items()
        },
        **estimated(study, workers),
    }


def _measure(
    study: "Study", out: Path, kind: str, workers: int, force: bool, as_json: bool
) -> None:
    """Run a study, write its report and manifest, and print its tables."""
    from personality_vector.report.page import NO_MATCH, write_report
    from personality_vector.report.tables import print_frame
    from personality_vector.study.judging import judges_of
    from personality_vector.study.run import Snapshot
    from personality_vector.study.tables import remarks, tables_of

    judges = [judge for one in study.measures for judge in judges_of(one)]
    with options.resumable(out), billed(judges, out) as bills:
        run = Snapshot(study.run(out, workers=workers, force=force).folder)
    page = write_report(run)
    run.write_manifest(kind)
    tables, notes = tables_of(run), remarks(run)
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
