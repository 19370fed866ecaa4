"""The HTML report of a run: one file, made from its store, that makes no request."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from personality_vector.errors import CheckpointError, RecipeError, foreign
from personality_vector.files.directory import explained, sync_tree, write_file
from personality_vector.report.figures import (
    dose_response_figure,
    inlined,
    pareto_figure,
    save_figure,
)
from personality_vector.report.matrices import agreement_figure, language_figure
from personality_vector.report.radar import radar_figure
from personality_vector.report.tables import table_of, text_of, with_brackets
from personality_vector.study.comparison import Column, Comparison, cross_talk
from personality_vector.study.curves import reach
from personality_vector.study.design import BASE
from personality_vector.study.numbers import Number, numbers_of
from personality_vector.study.poles import COMPOSED, GRID, KEPT, OWN
from personality_vector.study.profiles import language
from personality_vector.study.run import Run, Snapshot
from personality_vector.study.store import FILE
from personality_vector.study.tables import (
    AGREEMENT,
    CHOICES,
    CROSS_TALK,
    DIFFERENCES,
    DOSES,
    FIXED,
    FLATNESS,
    FRONTS,
    MATCHED,
    MEASURES_AGREE,
    MOVED,
    RESPONDENTS,
    SCORES,
    tables_of,
)

if TYPE_CHECKING:
    from jinja2 import Environment

NO_MATCH = (
    "No strength in the grids moves the effect towards this pole; give strengths of the other "
    "sign, or larger ones."
)

_TITLES = {
    CROSS_TALK: "Cross-talk",
    FIXED: "Fixed and broken",
    FRONTS: "Effect within a budget",
    "measures": "Measured",
    DOSES: "How closely the trait follows the strength",
    OWN: "How closely the own trait follows the strength, over all vectors",
    GRID: "The own trait at each strength",
    COMPOSED: "How closely each trait of a composition follows its alpha",
    KEPT: "Instructions that are followed, against the sum of alphas",
    MOVED: "How far answers moved from those of the base",
    "side effects": "Side effects",
    MEASURES_AGREE: "Do the measures agree?",
    RESPONDENTS: "What kind of respondent fills in the questionnaire?",
    SCORES: "Cosines with vectors",
    CHOICES: "Whom the judges prefer to the base",
    FLATNESS: "How flat the judges are",
    AGREEMENT: "Do the judges agree?",
    "unscored": "Unscored",
}
"""Tables to their headings, in the order of the page, after those at matched numbers."""

_FILES = {DOSES: "dose_response"}
"""Tables to the names of their files, where these are not their own."""

_NEAR = 0.1
"""Share of the target that a shift may miss before the summary says so."""

_SHOWN, _QUESTIONS = 3, 12
"""Most answers shown for a question at each strength, and most questions shown."""

_CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n\r"}
"""Control characters, which a browser would drop, to the visible signs that replace them."""


def write_report(run: Run | str | Path, *others: Run | str | Path) -> Path:
    """Write figures, tables and ``report.html`` of a sweep, comparison or evaluation.

    Args:
        run: The run, or its folder.
        *others: Comparisons on other poles, whose cross-talk stands below that of this one: five
            comparisons make the matrix of five traits.

    Returns:
        The path of the page. Figures are beside it as PNG and SVG, tables as CSV.

    Raises:
        CheckpointError: There is no run, or its results are damaged or of another format.
        RecipeError: One of ``others`` is not a comparison.
    """
    from jinja2 import Environment, PackageLoader

    run = _read_once(run)
    loader = PackageLoader("personality_vector.report")
    environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["text"] = text_of
    texts = {part: loader.get_source(environment, f"report.{part}")[0] for part in ("css", "js")}
    run.export()
    what = f"{run.folder / FILE}: its content is damaged or was changed"
    with explained(run.folder), foreign(CheckpointError, what):
        page = _page(run, environment, texts, _cross_talks(others))
    path = run.folder / "report.html"
    write_file(path, page.translate(_CONTROLS).encode())
    sync_tree(run.folder)
    return path


def _read_once(run: Run | str | Path) -> Snapshot:
    """Return a run whose results are read once."""
    if isinstance(run, Snapshot):
        return run
    return Snapshot(run.folder if isinstance(run, Run) else Path(run))


def _cross_talks(folders: Sequence[Run | str | Path]) -> list[pd.DataFrame]:
    """Return the cross-talk of comparisons.

    Raises:
        RecipeError: One of them is not a comparison.
    """
    runs = list(map(_read_once, folders))
    for one in runs:
        if one["pole"] is None:
            raise RecipeError(
                f"{one.folder}: is not a comparison, so it has no cross-talk; give runs of "
                "`pvec compare`, or --out to unite runs of one recipe"
            )
    return [cross_talk(Comparison(one)) for one in runs]


def _page(
    run: Run,
    environment: "Environment",
    texts: Mapping[str, str],
    cross_talks: Sequence[pd.DataFrame],
) -> str:
    """Return the page of a run, after writing its figures and its tables beside it."""
    cells, tables = run.cells(), tables_of(run)
    if cross_talks:
        tables[CROSS_TALK] = pd.concat(
            [tables.get(CROSS_TALK, pd.DataFrame()), *cross_talks], ignore_index=True
        )
    matched = [name for name in tables if name.startswith((MATCHED, DIFFERENCES))]
    for name in (*matched, CROSS_TALK, FIXED, FRONTS, DOSES):
        if name in tables:
            path = run.folder / f"{_FILES.get(name) or file_name(name)}.csv"
            write_file(path, tables[name].to_csv(index=False).encode())
    titles = {name: name.capitalize() for name in matched} | _TITLES
    shown = {title: tables[name] for name, title in titles.items() if name in tables}
    shown["How good the judges are"] = _qualities(run)
    return environment.get_template("report.html.jinja").render(
        **texts,
        # The policy of the page allows exactly this style and this script.
        hashes={
            part: f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
            for part, text in texts.items()
        },
        pole=run["pole"],
        base=run["base"],
        seeds=run["seeds"],
        shard=run["shard"],
        unrounded=run["unrounded"],
        cells=len(cells),
        finished=cells[cells["finished"]]["seconds"],
        missing=_missing(run),
        summary=summary_of(run, tables),
        no_match=NO_MATCH,
        pictures=_pictures(run, tables),
        tables={
            title: table_of(with_brackets(frame)) for title, frame in shown.items() if len(frame)
        },
        numbers=[*numbers_of(run, of_traits=True), *numbers_of(run, of_traits=False)],
        recipe=json.dumps(run["recipe"], indent=2, ensure_ascii=False),
        **side_by_side(run),
    )


def file_name(name: str) -> str:
    """Return a name for a file, of plain letters, digits and underscores.

    >>> file_name("at matched interview by states")
    'at_matched_interview_by_states'
    """
    return re.sub("[^a-z0-9]+", "_", name.lower()).strip("_")


def _missing(run: Run) -> dict[str, Any]:
    """Return how much is unscored, of all measures, and the reading that has most of it."""
    readings = run.readings()
    # A number without a value has at least one observation that gave none.
    counts = readings["unscored"].where(readings["value"].notna() | (readings["unscored"] > 0), 1)
    most = readings.assign(unscored=counts).sort_values("unscored", ascending=False, kind="stable")
    return {"total": int(counts.sum()), "most": most.head(1).to_dict("records")}


def _pictures(run: Run, tables: Mapping[str, pd.DataFrame]) -> dict[str, str]:
    """Draw the figures of a run, save them beside its page, and return what goes into it."""
    figures = {}
    if run["pole"] is not None:
        comparison = Comparison(run)
        effects = [axis for axis in comparison.axes if axis in comparison.effects]
        for effect in dict.fromkeys((comparison.effect, *effects)):
            name = "pareto" if effect == comparison.effect else f"pareto_{file_name(effect)}"
            figures[name] = pareto_figure(comparison, effect)
    if run["arms"]:
        figures["dose_response"] = dose_response_figure(run)
    figures["radar"] = radar_figure(run)
    if MEASURES_AGREE in tables:
        figures["agreement"] = agreement_figure(tables[MEASURES_AGREE])
    if not (words := language(run)).empty:
        figures["language"] = language_figure(words)
    drawn = {name: figure for name, figure in figures.items() if figure.axes}
    for name, figure in drawn.items():
        save_figure(figure, run.folder, name)
    return {name: inlined(run.folder / f"{name}.svg") for name in drawn}


def _qualities(run: Run) -> pd.DataFrame:
    """Return one row per judge and trait: how good the judge is."""
    rows = [{"judge": name, **row} for name, one in run["judges"].items() for row in one["quality"]]
    return (
        pd.DataFrame(rows, columns=["judge", "trait", "name", "value"])
        .pivot_table(index=["judge", "trait"], columns="name", values="value")
        .reset_index()
    )


def summary_of(run: Run, tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """Return the numbers of the answer, for ``summary.html.jinja``, from the tables of a run."""
    if run["pole"] is not None:
        comparison = Comparison(run)
        return {"compared": [_compared(comparison, axis) for axis in comparison.axes]}
    numbers = numbers_of(run, of_traits=True) or numbers_of(run, of_traits=False)
    # What follows a pole comes first.
    numbers = sorted(numbers, key=lambda one: one.better != "towards_pole")
    if run["arms"]:
        return _followed(list(run["arms"]), tables.get(DOSES, pd.DataFrame()), numbers)
    means = {one: _of(run.readings(), one).groupby("trait", sort=False) for one in numbers}
    return {
        "measured": {
            one: found[["value", "low", "high"]].mean().reset_index().to_dict("records")
            for one, found in means.items()
        }
    }


def _of(table: pd.DataFrame, number: Number) -> pd.DataFrame:
    return table[(table["measure"] == number.measure) & (table["judge"] == number.judge)]


def _followed(labels: list[str], table: pd.DataFrame, numbers: list[Number]) -> dict[str, Any]:
    """Return what each intervention moves most, the strongest first, and whether numbers agree."""
    if table.empty:
        return {"followed": [], "unclear": labels}
    clear = _of(table, numbers[0]).query("ci_low * ci_high > 0")
    clear = clear.sort_values("slope", key=abs, ascending=False, kind="stable")
    clear = clear.drop_duplicates("intervention")
    pairs = {
        one: clear.merge(_of(table, one), on=["intervention", "trait"])
        for one in numbers[1:]
        if one.better == numbers[0].better
    }
    return {
        "number": numbers[0],
        "followed": clear.to_dict("records"),
        "agreeing": {
            one: (int((found["slope_x"] * found["slope_y"] > 0).sum()), len(found))
            for one, found in pairs.items()
        },
        "unclear": [label for label in labels if label not in set(clear["intervention"])],
    }


def _compared(comparison: Comparison, axis: str) -> dict[str, Any]:
    """Return who is best at that target which most interventions reach, the best first.

    At equal effect that is who costs least, and at equal cost, who has the largest effect.
    """
    common = comparison.common(axis)
    if common.empty:
        return {"matched": {}}
    target, number = common["target"].iloc[0], comparison.numbers(axis)[0]
    places = {row.intervention: (row.intervention, row.strength) for row in common.itertuples()}
    shifts = {label: comparison.column(axis).value(place) for label, place in places.items()}
    is_effect = axis in comparison.effects
    found = {
        name: (better, pd.Series({label: column.value(at) for label, at in places.items()}))
        for name, column, better in _worth_ranking(comparison, is_effect=is_effect)
    }
    reaches = {label: reach(curve) for label, curve in comparison.curves(axis).items()}
    return {
        "axis": axis,
        "is_effect": is_effect,
        "target": target,
        "unit": number.unit,
        "matched": shifts,
        "costs": {
            name: _ranked(values.dropna(), better)
            for name, (better, values) in found.items()
            if values.notna().sum() > 1
        },
        "inexact": {k: v for k, v in shifts.items() if abs(v - target) > _NEAR * target},
        "beyond": {label: far for label, far in reaches.items() if label not in shifts},
    }


def _worth_ranking(comparison: Comparison, *, is_effect: bool) -> list[tuple[str, Column, str]]:
    """Return what to rank by: costs where the effect is equal, and otherwise effects."""
    if not is_effect:
        return [
            (f"the shift of {name}", comparison.column(name), "high") for name in comparison.effects
        ]
    others = ("the mean |shift| of the other traits", comparison.off_target, "low")
    costs = [
        (name, Column(name, comparison.cells(one, ""), is_shift=False), one.better)
        for name, one in comparison.firsts.items()
        if one.better in ("low", "high")
    ]
    return [others, *costs]


def _ranked(costs: "pd.Series[float]", better: str) -> tuple[str, bool, dict[str, float]]:
    """Return costs from the best one on, and before them whether two are level at the top."""
    ordered = costs.sort_values(ascending=better == "low", kind="stable")
    is_level = text_of(ordered.iloc[0]) == text_of(ordered.iloc[1])
    return better, is_level, ordered.to_dict()


def answers_of(run: Run) -> pd.DataFrame:
    """Return one row per answer, with what all judges made of it as one text: ``rating``."""
    frame = run.answers()
    rated = zip(frame["judge"], frame["trait"], frame["score"], frame["reason"], strict=True)
    is_one = len(run["judges"]) == 1
    ratings = [
        f"{trait} {f'unscored ({reason})' if pd.isna(score) else f'{score:.3g}'}"
        f"{'' if is_one else f' by {judge}'}"
        if judge
        else ""
        for judge, trait, score, reason in rated
    ]
    once = ["intervention", "strength", "seed", "measure", "item", "sample", "question", "reply"]
    by_answer = frame.assign(rating=ratings).groupby(once, sort=False, as_index=False)
    return by_answer.agg({"rating": ", ".join})


def sample_answers(answers: pd.DataFrame, label: str) -> dict[float, list[tuple[str, str]]]:
    """Return the first three answers of an intervention at each strength, with their ratings."""
    ordered = answers[answers["intervention"] == label].sort_values(
        ["strength", "seed", "sample"], kind="stable"
    )
    return {
        float(strength): list(zip(cell["reply"], cell["rating"], strict=True))[:_SHOWN]
        for strength, cell in ordered.groupby("strength")
    }


def side_by_side(run: Run) -> dict[str, Any]:
    """Return what a page needs to show the answers to each question beside those of the base.

    ``arms`` are the strengths of every intervention; ``spoken`` are those that the slider
    announces. It has as many ``steps`` as the longest of them. ``questions`` hold the answers.
    """
    answers = answers_of(run)
    found = answers.groupby("intervention")["strength"].unique()
    arms = {label: sorted(found[label]) for label in (BASE, *run["arms"]) if label in found}
    spoken = {label: strengths for label, strengths in arms.items() if label != BASE}
    if len(spoken) > 1 and len({tuple(strengths) for strengths in spoken.values()}) == 1:
        spoken = {"every intervention": next(iter(spoken.values()))}
    by_question = answers.groupby(["measure", "item", "question"], sort=False)
    questions = [
        {
            "question": question or item,
            "arms": {label: sample_answers(own, label) for label in arms},
        }
        for (_, item, question), own in islice(by_question, _QUESTIONS)
    ]
    return {
        "arms": arms,
        "spoken": spoken,
        "steps": max(map(len, spoken.values()), default=0),
        "questions": questions,
    }
