"""The HTML report of a run: one file without scripts, made from its store alone."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from personality_vector.report.figures import (
    dose_response_figure,
    pareto_figure,
    save_figure,
    svg_of,
)
from personality_vector.report.tables import table_of
from personality_vector.study.design import BASE
from personality_vector.study.run import Run
from personality_vector.study.tables import (
    dose_response,
    labels_of,
    matched_effect,
    measured,
    side_effects,
    unscored,
)
from personality_vector.traits import Pole

NO_MATCH = (
    "No strength in the grids moves the effect towards this pole; give strengths of the other "
    "sign, or larger ones."
)

_MEASURES = (
    "Likelihood: mean log-likelihood per token of high-pole statements minus low-pole ones, in "
    "nats. Interview: mean score of the answers, on the scale of the judge that gave it."
)

_SIDE_EFFECTS = (
    "Guards, of the generated answers: words each, share of distinct word pairs, share that is "
    "word for word a statement of the training part; realised: share of a weight edit that "
    "survived the rounding of its dtype. Divergence, of the base's own answers under the edited "
    "model: KL(base || edited) in nats per token, and perplexity."
)

_MATCHED = (
    "Each row is an intervention at the strength that moves the effect by the target; a prompt, "
    "which has no strengths in between, at its nearest grade. Shift, the shifts of judges and off "
    "target are changes against the base, the rest is as measured."
)

_QUALITY = (
    "On held-out statements; chance is 0.5. Length only: the accuracy that the number of "
    "characters alone reaches. A judge that learned from the same training part as the vectors is "
    "a weaker witness."
)

_UNSCORED = "Answers that a judge could not rate; they are in no mean."

_SHOWN = 3
"""Answers shown per strength."""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with a figure or a table under it."""

    title: str
    text: str = ""
    svg: str = ""
    rows: list[list[str]] = field(default_factory=list)
    headings: list[tuple[str, bool]] = field(default_factory=list)


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
    environment = Environment(
        loader=PackageLoader("personality_vector.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    run.export()
    page = environment.get_template("report.html.jinja").render(
        title=_title(run),
        subtitle=_subtitle(run),
        sections=[
            *_swept(run),
            *_compared(run),
            *_table("Side effects", _SIDE_EFFECTS, side_effects(run)),
            *_table("Unscored", _UNSCORED, unscored(run)),
            *_table("How good the judges are", _QUALITY, _qualities(run)),
        ],
        answers={label: sample_answers(run, label) for label in [BASE, *labels_of(run)]},
        recipe=json.dumps(run["recipe"], indent=2, ensure_ascii=False),
    )
    path = run.folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _title(run: Run) -> str:
    if run["pole"] is not None:
        return f"Comparison on {run['pole']}"
    return "Sweep" if labels_of(run) else "Evaluation"


def _subtitle(run: Run) -> str:
    base, cells, readings = run["base"], run.cells(), run.readings()
    done = cells[cells["finished"]]
    seeds = run["seeds"]
    return (
        f"Model {base['reference']}, {'seed' if len(seeds) == 1 else 'seeds'} "
        f"{', '.join(map(str, seeds))}, {base['dtype']}; {len(done)} of {len(cells)} cells in "
        f"{done['seconds'].sum():.0f} s; {int(readings['unscored'].sum())} unscored."
    )


def _swept(run: Run) -> list[Section]:
    if not labels_of(run):
        return [Section("Measured", _MEASURES, "", *table_of(measured(run)))]
    frame = dose_response(run)
    if frame.empty:
        return []
    figure = dose_response_figure(run)
    save_figure(figure, run.folder, "dose_response")
    frame.to_csv(run.folder / "dose_response.csv", index=False)
    return [
        Section(
            "Dose and response",
            f"{_MEASURES} Dashed: the base. Bars: 95 % interval of a judged mean.",
            svg_of(figure),
        ),
        *_table("How closely the trait follows the strength", "", frame),
    ]


def _compared(run: Run) -> list[Section]:
    if run["pole"] is None:
        return []
    figure, frame = pareto_figure(run, Pole.parse(run["pole"])), matched_effect(run)
    save_figure(figure, run.folder, "pareto")
    frame.to_csv(run.folder / "matched_effect.csv", index=False)
    return [
        Section(
            "Effect and cost",
            "Lower right is better: more of the wanted trait for less change of everything else.",
            svg_of(figure),
        ),
        Section("At matched effect", NO_MATCH if frame.empty else _MATCHED, "", *table_of(frame)),
    ]


def _qualities(run: Run) -> pd.DataFrame:
    """Return one row per judge and trait: how good the judge is."""
    rows = [{"judge": name, **row} for name, one in run["judges"].items() for row in one["quality"]]
    found = pd.DataFrame(rows, columns=["judge", "trait", "name", "value"])
    return found.pivot_table(index=["judge", "trait"], columns="name", values="value").reset_index()


def _table(title: str, text: str, frame: pd.DataFrame) -> list[Section]:
    """Return a section with a table, or none where the table has no rows."""
    return [] if frame.empty else [Section(title, text, "", *table_of(frame))]


def sample_answers(run: Run, label: str) -> dict[float, list[str]]:
    """Return the first three answers of an intervention at each strength."""
    frame, once = run.answers(), ["strength", "seed", "measure", "item", "sample"]
    own = frame[frame["intervention"] == label].drop_duplicates(once)
    ordered = own.sort_values(["strength", "seed", "sample"], kind="stable")
    return {
        float(strength): list(cell["reply"][:_SHOWN])
        for strength, cell in ordered.groupby("strength")
    }
