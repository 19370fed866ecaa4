"""``pvec sweep``, ``pvec compare`` and ``pvec eval``: measure, then report, manifest and table."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from personality_vector.cli import options
from personality_vector.recipes.schema import CompareRecipe, EvalRecipe, SweepRecipe
from personality_vector.traits import Pole

if TYPE_CHECKING:
    from personality_vector.study.results import Results


def check(recipe: SweepRecipe | EvalRecipe) -> dict[str, Any]:
    """Open every input."""
    from personality_vector.study.runs import spec_of

    return {"contents": spec_of(recipe)["contents"]}


def sweep(recipe: SweepRecipe, out: Path, *, force: bool, as_json: bool) -> None:
    """Measure interventions at many strengths.

    Resumes where it stopped. No checkpoint is written.
    """
    from personality_vector.study.sweep import sweep as run

    _finish(run(recipe, out, force=force), "sweep", as_json=as_json)


def compare(recipe: CompareRecipe, out: Path, *, force: bool, as_json: bool) -> None:
    """Compare interventions at equal effect.

    A sweep, then the strengths at which all of them move one pole equally far.
    """
    from personality_vector.study.compare import compare as run

    _finish(run(recipe, out, force=force), "compare", as_json=as_json)


def evaluate(recipe: EvalRecipe, out: Path, *, force: bool, as_json: bool) -> None:
    """Measure one model as it is."""
    from personality_vector.study.sweep import evaluate as run

    _finish(run(recipe, out, force=force), "eval", as_json=as_json)


def _finish(results: "Results", kind: str, *, as_json: bool) -> None:
    """Write the report and the manifest of a finished run, print its tables, and close it."""
    from personality_vector.report.page import write_report
    from personality_vector.report.tables import print_frame
    from personality_vector.study.compare import NO_MATCH
    from personality_vector.study.runs import write_run_manifest

    with results:
        folder = results.path.parent
        page, spec = write_report(results, folder), results.spec
        tables, notes = tables_of(results), _remarks(results)
    write_run_manifest(folder, spec, kind)
    if as_json:
        rows: dict[str, Any] = {"out": str(folder), "report": str(page), "remarks": notes}
        rows |= {title: frame.to_dict("records") for title, frame in tables.items()}
        options.show(options.without_nan(rows), as_json=True, text=str)
        return
    for title, frame in tables.items():
        print_frame(title, frame, if_empty=NO_MATCH)
    options.show(None, as_json=False, text=lambda: "\n".join([*notes, f"report: {page}"]))


def _remarks(results: "Results") -> list[str]:
    from personality_vector.study.compare import remarks

    return remarks(results, Pole.parse(results.spec["pole"])) if "pole" in results.spec else []


def tables_of(results: "Results") -> dict[str, Any]:
    """Return the tables of a run that its verb prints, by title."""
    from personality_vector.study.compare import matched_effect
    from personality_vector.study.sweep import by_strength, dose_response, labels_of, measured

    if not labels_of(results):
        return {"measures": measured(results)}
    followed = dose_response(results)
    tables = {"dose and response": followed}
    if followed["spearman"].isna().any():
        tables["by strength"] = by_strength(results)
    if "pole" in results.spec:
        tables["at matched effect"] = matched_effect(results, Pole.parse(results.spec["pole"]))
    return tables
