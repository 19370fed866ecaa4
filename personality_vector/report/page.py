"""The HTML report of a run: one file without scripts, made from ``results.sqlite`` alone."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from personality_vector.recipes.schema import MATCHED
from personality_vector.report.figures import (
    dose_response_figure,
    pareto_figure,
    save_figure,
    svg_of,
)
from personality_vector.report.tables import Column, table_of
from personality_vector.study.compare import NO_MATCH, matched_effect
from personality_vector.study.results import Results
from personality_vector.study.sweep import BASE, dose_response, labels_of, measured
from personality_vector.traits import Pole

_MEASURES = (
    "Probe: mean log-likelihood per token of held-out high-pole statements minus low-pole ones, in "
    "nats. Judge: mean score of generated answers by a text classifier, 1 (low) to 5 (high)."
)

_SIDE_EFFECTS = (
    "Of the generated answers: words each, share of distinct word pairs, share that is word for "
    "word a statement of the training part. Of the base's own answers under the edited model: KL "
    "to the base in nats per token, perplexity. Realised: share of a weight edit that survived "
    "the rounding of its dtype."
)

_SHOWN = 3
"""Answers shown per strength."""


@dataclass(frozen=True, slots=True)
class Section:
    """A heading with a figure or a table under it."""

    title: str
    text: str = ""
    svg: Any = ""
    rows: list[list[str]] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)


def write_report(results: Results, folder: Path) -> Path:
    """Write figures, tables and ``report.html`` of a sweep, comparison or evaluation.

    Returns:
        The path of the page. Figures are beside it as PNG and SVG, tables as CSV.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("personality_vector.report"), autoescape=True)
    environment.trim_blocks = environment.lstrip_blocks = True
    results.export(folder)
    page = environment.get_template("report.html.jinja").render(
        title=_title(results),
        subtitle=_subtitle(results),
        sections=[
            *_swept(results, folder),
            *_compared(results, folder),
            _side(results),
            _judge(results),
        ],
        answers={label: sample_answers(results, label) for label in [BASE, *labels_of(results)]},
        recipe=json.dumps(results.spec, indent=2, ensure_ascii=False),
    )
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def _title(results: Results) -> str:
    if "pole" in results.spec:
        return f"Comparison on {results.spec['pole']}"
    return "Sweep" if labels_of(results) else "Evaluation"


def _subtitle(results: Results) -> str:
    spec, measures = results.spec, results.frame("measures")
    unscored = int(measures[measures["measure"] == "judge"]["unscored"].sum())
    model = spec.get("base") or spec.get("model")
    seconds = results.frame("cells")["seconds"].sum()
    cells, scores = len(results.frame("cells")), len(results.frame("answers"))
    return (
        f"Model {model}, seed {spec['seed']}, {spec['dtype']}; {cells} cells in {seconds:.0f} s; "
        f"{scores} scores, {unscored} unscored."
    )


def _swept(results: Results, folder: Path) -> list[Section]:
    if not labels_of(results):
        return [Section("Measured", _MEASURES, "", *table_of(measured(results)))]
    figure, frame = dose_response_figure(results), dose_response(results)
    save_figure(figure, folder, "dose_response")
    frame.to_csv(folder / "dose_response.csv", index=False)
    return [
        Section(
            "Dose and response",
            f"{_MEASURES} Dashed: the base. Bars: 95 % interval of the judge's mean.",
            _markup(svg_of(figure)),
        ),
        Section("How closely the trait follows the strength", "", "", *table_of(frame)),
    ]


def _compared(results: Results, folder: Path) -> list[Section]:
    if "pole" not in results.spec:
        return []
    pole = Pole.parse(results.spec["pole"])
    figure, frame = pareto_figure(results, pole), matched_effect(results, pole)
    save_figure(figure, folder, "pareto")
    frame.to_csv(folder / "matched_effect.csv", index=False)
    return [
        Section(
            "Effect and cost",
            "Lower right is better: more of the wanted trait for less change of everything else.",
            _markup(svg_of(figure)),
        ),
        Section(
            "At matched effect",
            _matched_text(frame),
            "",
            *table_of(frame),
        ),
    ]


def _matched_text(frame: pd.DataFrame) -> str:
    if frame.empty:
        return NO_MATCH
    return (
        "Each row is an intervention at the strength that moves the probe by the target; a prompt, "
        "which has no strengths in between, at its nearest grade. Shift, judge shift and off "
        "target are changes against the base, the rest is as measured."
    )


def _side(results: Results) -> Section:
    measures = results.frame("measures")
    is_matched = measures["intervention"].str.contains(MATCHED, regex=False)
    plain = measures[(measures["trait"] == "") & ~is_matched]
    wide = plain.pivot_table(index=["intervention", "strength"], columns="measure", values="value")
    order = {label: index for index, label in enumerate([BASE, *labels_of(results)])}
    rows = wide.reset_index().sort_values(
        ["intervention", "strength"], key=lambda c: c.map(order) if c.name == "intervention" else c
    )
    return Section("Side effects", _SIDE_EFFECTS, "", *table_of(rows))


def _judge(results: Results) -> Section:
    measures = results.frame("measures")
    quality = measures[measures["measure"].str.startswith("judge_")]
    wide = quality.pivot_table(index="trait", columns="measure", values="value").reset_index()
    return Section(
        "How good the judge is",
        "On held-out statements; chance is 0.5. Length only: the accuracy that the number of "
        "characters alone reaches. The judge learned from the same training part as the vectors.",
        "",
        *table_of(wide),
    )


def sample_answers(results: Results, label: str) -> dict[float, list[str]]:
    """Return the first three answers of an intervention at each strength."""
    frame = results.frame("answers")
    own = frame[frame["intervention"] == label].drop_duplicates(["strength", "item", "sample"])
    ordered = own.sort_values(["strength", "sample"], kind="stable")
    return {
        float(strength): list(cell["reply"][:_SHOWN])
        for strength, cell in ordered.groupby("strength")
    }


def _markup(svg: str) -> Any:
    """Return our own figure as markup; everything else is escaped."""
    from markupsafe import Markup

    return Markup(svg)
