"""The HTML report of a run: one file that asks nothing of the network, from its store alone."""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from personality_vector.errors import CheckpointError, foreign
from personality_vector.files.directory import explained, sync_tree, write_file
from personality_vector.report.answers import side_by_side
from personality_vector.report.figures import (
    dose_response_figure,
    inlined,
    pareto_figure,
    save_figure,
)
from personality_vector.report.summary import summary_of
from personality_vector.report.tables import table_of, text_of
from personality_vector.study.run import Run
from personality_vector.study.store import FILE
from personality_vector.study.tables import (
    dose_response,
    labels_of,
    matched_effect,
    measured,
    numbers_of,
    side_effects,
    unscored,
)
from personality_vector.traits import Pole

if TYPE_CHECKING:
    from jinja2 import Environment

NO_MATCH = (
    "No strength in the grids moves the effect towards this pole; give strengths of the other "
    "sign, or larger ones."
)

_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"}
"""Control characters, which a page would swallow, to signs that can be seen."""


def write_report(run: Run | str | Path) -> Path:
    """Write figures, tables and ``report.html`` of a sweep, comparison or evaluation.

    Args:
        run: The run, or its folder.

    Returns:
        The path of the page. Figures are beside it as PNG and SVG, tables as CSV.

    Raises:
        CheckpointError: There is no run, or its results are damaged or of another format.
    """
    from jinja2 import Environment, PackageLoader

    run = run if isinstance(run, Run) else Run(Path(run))
    loader = PackageLoader("personality_vector.report")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["text"] = text_of
    texts = {part: loader.get_source(environment, f"report.{part}")[0] for part in ("css", "js")}
    run.export()
    what = f"{run.folder / FILE}: its content is damaged or was changed"
    with explained(run.folder), foreign(CheckpointError, what):
        page = _page(run, environment, texts)
    path = run.folder / "report.html"
    write_file(path, page.translate(_CONTROLS).encode())
    sync_tree(run.folder)
    return path


def _page(run: Run, environment: "Environment", texts: Mapping[str, str]) -> str:
    """Return the page of a run, after writing its figures and two tables beside it."""
    cells, pictures, tables = run.cells(), _pictures(run), _tables(run)
    return environment.get_template("report.html.jinja").render(
        **texts,
        hashes={part: _hash(text) for part, text in texts.items()},
        pole=run["pole"],
        base=run["base"],
        seeds=run["seeds"],
        cells=len(cells),
        finished=cells[cells["finished"]]["seconds"],
        missing=_missing(run),
        summary=summary_of(run),
        no_match=NO_MATCH,
        pictures=pictures,
        tables={title: table_of(frame) for title, frame in tables.items() if len(frame)},
        numbers=[*numbers_of(run, of_traits=True), *numbers_of(run, of_traits=False)],
        recipe=json.dumps(run["recipe"], indent=2, ensure_ascii=False),
        **side_by_side(run),
    )


def _hash(text: str) -> str:
    """Return the source of a policy that allows exactly this style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _missing(run: Run) -> dict[str, Any]:
    """Return how much is unscored, of all measures, and the reading that has most of it."""
    readings = run.readings()
    # A number without a value has at least one observation that gave none.
    counts = readings["unscored"].where(readings["value"].notna() | (readings["unscored"] > 0), 1)
    most = readings.assign(unscored=counts).sort_values("unscored", ascending=False, kind="stable")
    return {"total": int(counts.sum()), "most": most.head(1).to_dict("records")}


def _pictures(run: Run) -> dict[str, str]:
    """Draw the figures of a run, save them beside its page, and return what goes into it."""
    figures = {}
    if run["pole"] is not None:
        figures["pareto"] = pareto_figure(run, Pole.parse(run["pole"]))
    if labels_of(run):
        figures["dose_response"] = dose_response_figure(run)
    drawn = {name: figure for name, figure in figures.items() if figure.axes}
    for name, figure in drawn.items():
        save_figure(figure, run.folder, name)
    return {name: inlined(run.folder / f"{name}.svg") for name in drawn}


def _tables(run: Run) -> dict[str, pd.DataFrame]:
    """Return the tables of a run by title, after writing two of them beside its page."""
    found = {}
    if run["pole"] is not None:
        found["At matched effect"] = matched_effect(run)
        found["At matched effect"].to_csv(run.folder / "matched_effect.csv", index=False)
    if not (followed := dose_response(run)).empty:
        followed.to_csv(run.folder / "dose_response.csv", index=False)
    if not labels_of(run):
        found["Measured"] = measured(run)
    return found | {
        "How closely the trait follows the strength": followed,
        "Side effects": side_effects(run),
        "Unscored": unscored(run),
        "How good the judges are": _qualities(run),
    }


def _qualities(run: Run) -> pd.DataFrame:
    """Return one row per judge and trait: how good the judge is."""
    rows = [{"judge": name, **row} for name, one in run["judges"].items() for row in one["quality"]]
    found = pd.DataFrame(rows, columns=["judge", "trait", "name", "value"])
    return found.pivot_table(index=["judge", "trait"], columns="name", values="value").reset_index()
