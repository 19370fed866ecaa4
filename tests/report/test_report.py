"""The report of a run: one page that hides nothing and runs nothing."""

from html.parser import HTMLParser
from xml.etree import ElementTree

import pandas as pd
import pytest

import personality_vector as pv
from personality_vector.errors import CheckpointError
from personality_vector.report.page import sample_answers, write_report
from personality_vector.report.tables import print_frame, text_of
from personality_vector.study.run import Run
from personality_vector.study.store import FILE, Store
from personality_vector.study.tables import numbers_of
from tests.report.stores import STRENGTHS, Made

EVIL = "<script>alert(1)</script>"
IMAGE = "</pre><img src=x onerror=alert(1)>{{ 7 * 7 }}&lt;"
COMMENT = f"--> {EVIL} <!--"  # matplotlib writes labels into comments
HARMLESS = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "div", "figure"}
HARMLESS |= {"table", "thead", "tbody", "tr", "th", "td", "details", "summary", "blockquote", "pre"}

DRAWN = {"svg", "metadata", "rdf:rdf", "defs", "g", "path", "use", "rect", "clippath"}
DRAWN |= {"cc:work", "dc:type", "dc:format", "dc:creator", "cc:agent", "dc:title"}


class Page(HTMLParser):
    """The elements of a page, checked to be closed in order, and its texts."""

    VOID = frozenset({"meta", "path", "use", "rect", "image"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.comments: list[str] = []
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
        self.comments.append(data.strip())  # what matplotlib drew as a path stands in a comment

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


POLE = "extraversion:high"
ITEMS, SAMPLES = 1, 4


def write_run(folder, labels=("weights", "activations"), **given):
    """Write the report of a run that no model made, and return its page."""
    if given.get("pole"):
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
    policy = [a["content"] for tag, a in page.elements if a.get("http-equiv")]
    assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_nothing_in_the_page_leads_or_runs_anywhere(page):
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        links = [attributes.get(name) or "#" for name in ("href", "src", "xlink:href", "action")]
        assert all(link.startswith("#") for link in links)


@pytest.mark.parametrize("evil", [EVIL, IMAGE])
def test_whatever_a_name_or_a_reply_says_is_text_wherever_it_appears(tmp_path, evil):
    """Labels, replies, traits, measures, judges and the base: anybody's objects can name them."""
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
    assert f"; {missing} unscored." in page.text
    assert page.comments.count("3 unscored") == 2 * 2, "beside the points in the figure"
    assert "Unscored Answers that a judge could not rate; they are in no mean." in page.text
    scored = (1 + 2 * len(STRENGTHS) + 2) * SAMPLES - missing // 2
    for trait in ("extraversion", "openness"):
        assert f"interview classifier {trait} {scored} {missing // 2} " in page.text


def test_a_point_without_any_score_is_left_out_and_counted(tmp_path):
    page = write_run(tmp_path, unscored=SAMPLES)
    assert f"{2 * 2 * SAMPLES} unscored." in page.text
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
    matched = pd.read_csv(folder / "matched_effect.csv")
    assert matched["shift"].tolist() == pytest.approx([0.7, 0.7])
    assert matched["classifier shift"].tolist() == pytest.approx([0.7 / 3, 0.7 / 3])
    assert matched["kl_base_edited"].tolist() == pytest.approx([0.007, 0.007])
    assert matched["off_target"].tolist() == pytest.approx([0.07, 0.07])
    for name in ("readings", "answers"):
        csv = pd.read_csv(folder / f"{name}.csv")
        assert len(csv) == len(pd.read_parquet(folder / f"{name}.parquet")) > 0


def test_seeds_are_repetitions_and_a_label_is_no_mathematics(tmp_path):
    label = "$\\frac$"
    page = write_run(tmp_path, (label,), seeds=(0, 7), unscored=0)
    assert "seeds 0, 7, float32; 40 of 40 cells in 40 s; 0 unscored." in page.text
    assert "could not rate" not in page.text
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
def test_the_first_three_answers_of_each_strength_are_shown(folder):
    shown = sample_answers(Run(folder), "weights")
    assert list(shown) == sorted((*STRENGTHS, 0.7))
    assert shown[0.5] == ["weights 0.5 0", "weights 0.5 1", "weights 0.5 2"]


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


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="there is no results file"):
        write_report(tmp_path)


def test_an_axis_has_the_scale_of_the_judge_and_the_unit_of_the_measure(tmp_path):
    run = Made(tmp_path).write()
    labels = [number.label for number in numbers_of(run, of_traits=True)]
    assert labels == ["likelihood\n(nats per token)", "interview by classifier\n(1 to 5)"]
    others = {number.measure: number for number in numbers_of(run, of_traits=False)}
    assert others["divergence.kl_base_edited"].better == "low"
    assert others["guards.words"].label == "guards.words\n(words)"


@pytest.mark.parametrize("label", ["[bold]x", "[/x]", "[a] b"])
def test_a_label_is_not_read_as_markup_of_the_terminal(capsys, label):
    print_frame("table", pd.DataFrame({"intervention": [label], "value": [1.0]}))
    assert label in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.12345, "0.123"), (1234.5, "1.23e+03"), (float("nan"), "-"), (3, "3"), (-0.5, "-0.5")],
)
def test_a_cell_has_three_digits_or_a_dash(value, expected):
    assert text_of(value) == expected
