"""The report of a run: one page that hides nothing, and runs one script that it names."""

import base64
import hashlib
import math
from html.parser import HTMLParser
from itertools import product
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

import personality_vector as pv
from personality_vector.errors import CheckpointError, RecipeError
from personality_vector.report.figures import _drawn, dose_response_figure, pareto_figure
from personality_vector.report.page import answers_of, sample_answers, write_report
from personality_vector.report.tables import print_frame, table_of, text_of, with_brackets
from personality_vector.study.comparison import Comparison, at_matched
from personality_vector.study.numbers import numbers_of
from personality_vector.study.run import Run
from personality_vector.study.store import FILE, Store
from tests.report.stores import STRENGTHS, Made

EVIL = "<script>alert(1)</script>"
IMAGE = "</pre><img src=x onerror=alert(1)>{{ 7 * 7 }}&lt;"
COMMENT = f"--> {EVIL} <!--"  # matplotlib writes labels into comments
HARMLESS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "h4", "p", "div"}
HARMLESS |= {"table", "thead", "tbody", "tr", "th", "td", "dl", "dt", "dd", "pre", "blockquote"}
HARMLESS |= {"figure", "section", "details", "summary", "nav", "a", "b", "bdi", "span"}
HARMLESS |= {"label", "input", "output", "script"}
DRAWN = {"svg", "defs", "g", "path", "use", "rect", "clippath"}


class Page(HTMLParser):
    """The elements of a page, checked to be closed in order, and its texts."""

    VOID = frozenset({"meta", "input", "path", "use", "rect"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.code: dict[str, str] = {}
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_comment(self, data):
        pytest.fail(f"a comment in the page: {data}")

    def handle_data(self, data):
        if self.open[-1:] in (["style"], ["script"]):
            self.code[self.open[-1]] = data
        else:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


POLE = "extraversion:high"
ITEMS, SAMPLES = 1, 4


def write_run(folder, labels=("weights", "activations"), **given):
    """Write the report of a run that no model made, and return its page."""
    if given.get("pole") and "matched" not in given:
        given["matched"] = 0.7
    run = Made(folder, labels, **given).write()
    return Page(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def page(folder):
    """Return the page of a comparison of two interventions."""
    return write_run(folder, pole=POLE)


def test_the_page_is_whole_and_holds_no_foreign_element(page):
    assert page.open == []
    drawn = {tag for tag, _ in page.elements} - HARMLESS
    assert "svg" in drawn
    assert drawn <= DRAWN


def test_the_policy_names_the_style_and_the_script_and_allows_nothing_else(page):
    (policy,) = [a["content"] for _, a in page.elements if a.get("http-equiv")]
    hashes = {
        kind: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        for kind, text in page.code.items()
    }
    assert policy.split("; ") == [
        "default-src 'none'",
        f"style-src 'sha256-{hashes['style']}'",
        f"script-src 'sha256-{hashes['script']}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    tags = [tag for tag, _ in page.elements]
    assert (tags.count("style"), tags.count("script")) == (1, 1)


def test_nothing_in_the_page_leads_or_runs_anywhere(page):
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name == "style"]
        links = [attributes.get(name) or "#" for name in ("href", "src", "xlink:href", "action")]
        assert all(link.startswith("#") for link in links)


def test_whatever_a_name_or_a_reply_says_is_text_wherever_it_appears(tmp_path):
    """Labels, replies, traits, measures, judges and the base: anybody's objects can name them."""
    evil = IMAGE + EVIL
    names = {"judge": f"judge {evil}", "interview": f"asks {evil}", "base": f"base {evil}"}
    traits = ("extraversion", f"trait {evil}")
    page = write_run(tmp_path, (evil, COMMENT), reply=evil, traits=traits, pole=POLE, **names)
    assert page.open == []
    assert {tag for tag, _ in page.elements} <= HARMLESS | DRAWN
    # Every reply shown, and each label in the tables and above its replies.
    assert len([t for t in page.texts if t.strip() == evil]) > 3 * len(STRENGTHS)
    assert len([t for t in page.texts if t.strip() == COMMENT]) > len(STRENGTHS)
    for name in (*names.values(), traits[1]):
        assert [text for text in page.texts if name in text], name


def test_unscored_answers_are_counted_and_shown(page):
    missing = 2 * 2 * 3
    where = "interview by classifier, extraversion, weights at strength 3, seed 0"
    assert f"; {missing} unscored, most of them (3 of 4) in {where}." in page.text
    assert "Unscored What could not be rated or measured; it is in no mean." in page.text
    scored = (1 + 2 * len(STRENGTHS) + 2) * SAMPLES - missing // 2
    for trait in ("extraversion", "openness"):
        assert f"interview classifier {trait} {scored} {missing // 2} " in page.text


def test_a_point_without_any_score_is_left_out_and_counted(tmp_path):
    page = write_run(tmp_path, unscored=SAMPLES)
    assert f"{2 * 2 * SAMPLES} unscored, most of them (4 of 4) in interview" in page.text
    table = pd.read_csv(tmp_path / "dose_response.csv")
    judged = table[table["measure"] == "interview"]
    assert set(judged["n"]) == {len(STRENGTHS) - 1}
    assert set(judged["unscored"]) == {SAMPLES}


def test_how_good_the_judges_are_is_said(page):
    assert "How good the judges are On held-out statements; chance is 0.5." in page.text
    for trait in ("extraversion", "openness"):
        assert f"classifier {trait} 0.875" in page.text


@pytest.mark.usefixtures("page")
def test_the_tables_and_figures_lie_beside_the_page(folder):
    for name in ("dose_response", "pareto"):
        ElementTree.parse(folder / f"{name}.svg")
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    keys = ["intervention", "trait", "measure"]
    table = pd.read_csv(folder / "dose_response.csv").set_index(keys)
    assert table.loc[("weights", "extraversion", "likelihood")]["slope"] == pytest.approx(1.0)
    assert table.loc[("weights", "openness", "likelihood")]["slope"] == pytest.approx(0.1)
    matched = pd.read_csv(folder / "at_matched_likelihood.csv")
    assert matched["shift"].tolist() == pytest.approx([0.7, 0.7])
    assert matched["classifier shift"].tolist() == pytest.approx([0.7 / 3, 0.7 / 3])
    assert matched["divergence mean"].tolist() == pytest.approx([0.007, 0.007])
    assert matched["off_target"].tolist() == pytest.approx([0.07, 0.07])
    for name in ("readings", "answers"):
        csv = pd.read_csv(folder / f"{name}.csv")
        assert len(csv) == len(pd.read_parquet(folder / f"{name}.parquet")) > 0


def test_seeds_are_repetitions_and_a_label_is_no_mathematics(tmp_path):
    label = "$\\frac$"
    page = write_run(tmp_path, (label,), seeds=(0, 7), unscored=0)
    assert "seeds 0, 7, float32; 40 of 40 cells in 40 s; 0 unscored." in page.text
    assert "could not be rated" not in page.text
    table = pd.read_csv(tmp_path / "dose_response.csv")
    assert set(table[table["measure"] == "likelihood"]["n"]) == {2 * len(STRENGTHS)}
    assert label in page.texts


@pytest.mark.usefixtures("page")
def test_the_same_results_write_the_same_bytes(folder):
    def written():
        return {p.name: p.read_bytes() for p in folder.iterdir() if "sqlite" not in p.name}

    before = written()
    assert pv.report(folder) == folder / "report.html"
    assert {"report.html", "pareto.svg", "pareto.png", "answers.parquet"} <= before.keys()
    after = written()
    assert [name for name in before if after[name] != before[name]] == []


@pytest.mark.usefixtures("page")
def test_the_first_three_answers_of_each_strength_are_shown_with_their_ratings(folder):
    shown = sample_answers(answers_of(Run(folder)), "weights")
    assert list(shown) == sorted((*STRENGTHS, 0.7))
    assert [reply for reply, _ in shown[0.5]] == [f"weights 0.5 {n}" for n in range(3)]
    assert {rating for _, rating in shown[0.5]} == {"extraversion 3.17, openness 3.17"}
    assert {rating for _, rating in shown[3.0]} == {
        "extraversion unscored (empty), openness unscored (empty)"
    }


def test_every_answer_can_be_read_without_the_script(page):
    cells = [a for _, a in page.elements if "data-step" in a]
    assert [a["data-step"] for a in cells] == 2 * [str(step) for step in range(5)]
    assert all(a["data-last"] == "4" and "hidden" not in a for a in cells)
    for strength in (*STRENGTHS, 0.7):
        assert f"activations {strength:g} 0" in page.texts
    (slider,) = [a for tag, a in page.elements if tag == "input"]
    assert (slider["type"], slider["min"], slider["max"]) == ("range", "0", "4")
    (bar,) = [a for _, a in page.elements if a.get("class") == "slider"]
    assert "hidden" in bar, "it does nothing without the script"
    assert "every intervention" in page.texts


@pytest.mark.usefixtures("no_pictures")
def test_control_characters_are_shown_and_do_not_break_the_page(tmp_path):
    page = write_run(tmp_path, ("one",), reply="a\x1b[31mb\x00c")
    assert "a\u241b[31mb\u2400c" in page.texts


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    ("given", "question", "answer"),
    [
        (
            {},
            "How does each trait follow the strength of each intervention?",
            "weights moves extraversion by +1 nats per token per unit of strength (Spearman 1.00; "
            "Pearson 1.00, 95 % interval 1.00 to 1.00); activations moves extraversion by +1 nats "
            "per token per unit of strength (Spearman 1.00; Pearson 1.00, 95 % interval 1.00 to "
            "1.00). Of these, interview by classifier moves the same way in 2 of 2.",
        ),
        (
            {"labels": [f"v{n}" for n in range(9)]},
            "How does each trait follow the strength of each intervention?",
            "9 of 9 interventions move a trait. The furthest: v0 moves extraversion by +1 nats",
        ),
        (
            {"pole": POLE, "dearer": 2.0},
            "What does the same shift towards extraversion:high cost?",
            "At a shift of 0.7 nats per token, the cheapest is weights: the mean |shift| of the "
            "other traits is lowest with weights (0.07), then activations (0.14); "
            "divergence.mean is lowest with weights (0.007), then activations (0.014). "
            "These are from one seed; the tables have intervals.",
        ),
        (
            {"pole": POLE},
            "What does the same shift towards extraversion:high cost?",
            "At a shift of 0.7 nats per token, the mean |shift| of the other traits is lowest "
            "with activations (0.07), level with weights (0.07); divergence.mean is",
        ),
        (
            {"pole": POLE, "labels": ("a", "b", "c"), "beyond": ("b",), "seeds": (0, 1)},
            "What does the same shift towards extraversion:high cost?",
            "b has no strength there; the furthest that it reaches is 3. These are means over 2 "
            "seeds; the tables have intervals.",
        ),
        (
            {"pole": POLE, "beyond": ("weights",)},
            "What does the same shift towards extraversion:high cost?",
            "There is no answer: at a shift of 0.7 nats per token, only activations has a "
            "strength.",
        ),
        (
            {"pole": POLE, "beyond": ("weights", "activations")},
            "What does the same shift towards extraversion:high cost?",
            "There is no answer. No strength in the grids moves the effect towards this pole",
        ),
        (
            {"labels": ()},
            "What was measured of some/base?",
            "likelihood (nats per token): extraversion 0, openness 0. interview by classifier (1 "
            "to 5): extraversion 3 (3 to 3), openness 3 (3 to 3). In brackets: 95 % intervals.",
        ),
    ],
    ids=[
        "sweep",
        "many",
        "comparison",
        "level",
        "out of reach",
        "one reaches",
        "none",
        "evaluation",
    ],
)
def test_the_page_begins_with_the_question_and_its_answer(tmp_path, given, question, answer):
    text = write_run(tmp_path, **given).text
    assert 0 < text.index(question) < text.index(answer) < text.index("Model some/base")


def test_an_intervention_that_does_not_reach_a_target_takes_nothing_from_the_others(tmp_path):
    run = Made(tmp_path, ("a", "b"), pole=POLE, matched=0.7, beyond=("b",)).write()
    table = at_matched(Comparison(run), "likelihood").set_index("intervention")
    assert table.loc["a", ["strength", "shift"]].tolist() == pytest.approx([0.7, 0.7])
    assert table["reach"].tolist() == pytest.approx([3.0, 3.0])
    assert table.loc["b"].drop(["target", "reach"]).isna().all()


def lines_of(axes):
    """Return the look of every line of a panel that has a name, by that name."""
    handles, labels = axes.get_legend_handles_labels()
    lines = [getattr(one, "lines", [one])[0] for one in handles]
    looks = [(one.get_color(), one.get_marker()) for one in lines]
    return dict(zip(labels, looks, strict=True))


@pytest.mark.parametrize(("count", "traits"), [(2, 9), (7, 1), (8, 1)])
def test_no_two_lines_of_a_figure_look_alike(tmp_path, monkeypatch, count, traits):
    monkeypatch.setattr("personality_vector.report.figures.place_notes", lambda _: None)  # slow
    names = [f"v{n}" for n in range(count)], [f"t{n}" for n in range(traits)]
    run = Made(tmp_path, *names, unscored=0).write()
    panels = [lines_of(axes) for axes in dose_response_figure(run).axes]
    looks = {name: look for panel in panels for name, look in panel.items() if name}
    assert len(set(looks.values())) == len(looks)
    assert all(len({colour for colour, _ in panel.values()}) == len(panel) for panel in panels)


def test_where_traits_are_too_many_as_well_each_curve_has_a_panel(monkeypatch):
    monkeypatch.setattr("personality_vector.report.figures.place_notes", lambda _: None)  # slow
    # One trait of eight labels, and one label of eight traits.
    pairs = [(f"t{n}", f"v{m}") for n, m in product(range(8), range(8)) if n == 0 or m == 0]
    table = pd.DataFrame(pairs, columns=["panel", "line"]).assign(number="n", x=0.0, y=0.0, at=0.0)
    figure = _drawn(table.assign(half=0.0, base=0.0, unscored=0, note=""), "strength", {})
    titles = [axes.get_title() for axes in figure.axes]
    assert sorted(titles) == sorted(f"{label}, {trait}" for trait, label in pairs)


@pytest.mark.parametrize("figure", [dose_response_figure, pareto_figure])
def test_more_lines_than_can_be_told_apart_become_panels(tmp_path, monkeypatch, figure):
    monkeypatch.setattr("personality_vector.report.figures.place_notes", lambda _: None)  # slow
    labels = [f"v{n}" for n in range(8)]
    run = Made(tmp_path, labels, ("extraversion",), pole=POLE, matched=0.7, unscored=0).write()
    drawn = figure(run) if figure is dose_response_figure else figure(Comparison(run), "likelihood")
    titles = [axes.get_title() for axes in drawn.axes]
    assert titles == labels * (len(titles) // len(labels))
    first, second = drawn.axes[:2]
    assert first.get_ylim() == second.get_ylim()
    assert first.get_xlim() == second.get_xlim()
    grey = [one for one in first.lines if one.get_color() == "#B0B0B0"]
    assert len(grey) == len(labels) - 1


def test_no_note_of_a_figure_lies_over_another_or_over_a_curve(tmp_path):
    labels = [f"v{n}" for n in range(6)]  # with the same curve, so that most notes have no room
    run = Made(tmp_path, labels, pole=POLE, matched=0.7).write()
    for axes in pareto_figure(Comparison(run), "likelihood").axes:
        boxes = [note.get_window_extent() for note in axes.texts if note.get_visible()]
        assert 0 < len(boxes) < len(axes.texts)
        assert sum(box.count_overlaps(boxes) for box in boxes) == len(boxes)  # each with itself


@pytest.mark.parametrize("labels", [(), ("one",)], ids=["evaluation", "one intervention"])
def test_a_small_run_has_a_page_too(tmp_path, labels):
    text = write_run(tmp_path, labels).text
    assert ("Evaluation" if not labels else "Sweep") in text
    assert "0.875" in text


def test_a_run_that_has_hardly_begun_has_a_page_too(tmp_path):
    Made(tmp_path).write()
    with Store.open(tmp_path / FILE) as store:
        store.connection.execute("PRAGMA foreign_keys = OFF")
        for table in ("scores", "answers", "readings", "cells"):
            store.connection.execute(f"DELETE FROM {table}")
    page = Page(write_report(tmp_path).read_text(encoding="utf-8"))
    assert "; 0 of 36 cells in 0 s; 0 unscored." in page.text
    assert page.text.startswith("Sweep")
    assert "no answer yet for weights, activations: nothing has been measured." in page.text


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no results file"):
        write_report(tmp_path)


def test_an_axis_has_the_scale_of_the_judge_and_the_unit_of_the_measure(tmp_path):
    run = Made(tmp_path).write()
    labels = [number.label for number in numbers_of(run, of_traits=True)]
    assert labels == ["likelihood\n(nats per token)", "interview by classifier\n(1 to 5)"]
    others = {number.measure: number for number in numbers_of(run, of_traits=False)}
    assert others["divergence.mean"].better == "low"
    assert others["guards.words"].label == "guards.words\n(words)"


@pytest.mark.parametrize("label", ["[bold]x", "[/x]", "[a] b"])
def test_a_label_is_not_read_as_markup_of_the_terminal(capsys, label):
    print_frame("table", pd.DataFrame({"intervention": [label], "value": [1.0]}))
    assert label in capsys.readouterr().out


def test_a_wide_table_is_printed_in_parts_that_begin_alike(capsys):
    columns = ["intervention", "strength", *(f"number_{n}" for n in range(23))]
    print_frame("costs", pd.DataFrame([["weights", 1.0, *map(float, range(23))]], columns=columns))
    printed = capsys.readouterr().out
    assert printed.count("weights") == printed.count("intervention") == 3
    assert printed.count("costs") == 3
    assert printed.count("further columns") == 2
    for n in range(23):
        assert f"number {n} " in printed


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.12345, "0.123"), (1234.5, "1.23e+03"), (float("nan"), "-"), (3, "3"), (-0.5, "-0.5")],
)
def test_a_cell_has_three_digits_or_a_dash(value, expected):
    assert text_of(value) == expected


def test_an_interval_stands_in_brackets_behind_its_number():
    frame = pd.DataFrame(
        {
            "intervention": ["a", "b"],
            "shift": [0.5, math.nan],
            "shift low": [0.25, math.nan],
            "shift high": [0.75, math.nan],
            "low": [1.0, 2.0],
        }
    )
    rows, headings = table_of(with_brackets(frame))
    assert rows == [["a", "0.5 [0.25, 0.75]", "1"], ["b", "-", "2"]]
    assert headings == [("intervention", False), ("shift", True), ("low", True)]


@pytest.mark.usefixtures("no_pictures")
def test_comparisons_on_several_poles_show_their_cross_talk_together(tmp_path):
    """A comparison for each of two traits makes a matrix of two by two."""
    first, second = tmp_path / "one", tmp_path / "two"
    for folder, pole in ((first, POLE), (second, "openness:high")):
        folder.mkdir()
        Made(folder, ("weights",), ("extraversion", "openness"), pole=pole, matched=0.7).write()
    write_report(first, second)
    table = pd.read_csv(first / "cross_talk.csv").query("number == 'likelihood'")
    matrix = table.set_index("pole")[["extraversion", "openness"]].to_numpy()
    assert matrix == pytest.approx(np.array([[0.7, 0.07], [0.7, 0.07]]))
    third = Made(tmp_path / "sweep", ("weights",))
    third.folder.mkdir()
    third.write()
    with pytest.raises(RecipeError, match="sweep: is not a comparison, so it has no cross-talk"):
        write_report(first, third.folder)
