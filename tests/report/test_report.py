"""The report of a run: one page that hides nothing and runs nothing."""

from html.parser import HTMLParser
from itertools import product
from xml.etree import ElementTree

import pandas as pd
import pytest

from personality_vector.report.page import sample_answers, write_report
from personality_vector.report.tables import print_frame, text_of
from personality_vector.study.store import Answer, Measure, Results

EVIL = "<script>alert(1)</script>"
IMAGE = "</pre><img src=x onerror=alert(1)>{{ 7 * 7 }}&lt;"
COMMENT = f"--> {EVIL} <!--"  # matplotlib writes labels into comments
STRENGTHS = (0.5, 1.0, 2.0, 3.0)
TRAITS = ("extraversion", "openness")
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


def measures(shift, unscored):
    """Return what a cell measures when the probe has moved by ``shift``."""
    n = 8 - unscored
    for trait in TRAITS:
        yield Measure(trait, "probe", shift if trait == "extraversion" else 0.1 * shift, 0.1, 8)
        yield Measure(trait, "judge", 3.0 + 0.3 * shift if n else None, 0.2, n, unscored)
    yield Measure("", "words", 9.0, None, 8)
    yield Measure("", "kl_to_base", 0.01 * abs(shift), None, 99)


def answers(label, strength, reply=""):
    return [
        Answer(
            "item", trait, sample, "Who?", reply or f"{label} {strength:g} {sample}", None, "empty"
        )
        for trait in TRAITS
        for sample in range(4)
    ]


POLE = "extraversion:high"


def write_run(folder, labels=("weights", "activations"), *, reply="", unscored=3, pole=None):
    """Write the report of a run that no model made; the last cell of each label is unscored."""
    spec = {
        "base": "some/base",
        "seed": 0,
        "dtype": "float32",
        "measure": {"traits": list(TRAITS)},
        "interventions": [{"label": label} for label in labels],
    }
    with Results.open(folder / "results.sqlite", spec | ({"pole": pole} if pole else {})) as run:
        quality = [Measure(trait, "judge_accuracy", 0.875, None, 8) for trait in TRAITS]
        run.write_cell("base", 0.0, answers("base", 0.0, reply), [*measures(0.0, 0), *quality], 1.0)
        for label, strength in product(labels, STRENGTHS):
            found = list(measures(strength, unscored if strength == STRENGTHS[-1] else 0))
            run.write_cell(label, strength, answers(label, strength, reply), found, 1.0)
        for label in labels if pole else ():
            target = Measure("extraversion", "target", 0.7, None, 1)
            run.write_cell(f"{label} (matched at 0.7)", 0.7, [], [*measures(0.7, 0), target], 1.0)
        return Page(write_report(run, folder).read_text(encoding="utf-8"))


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


def test_a_label_and_a_reply_are_text_wherever_they_appear(tmp_path):
    for evil in (EVIL, IMAGE):
        (tmp_path / str(len(evil))).mkdir()
        page = write_run(tmp_path / str(len(evil)), (evil, COMMENT), reply=evil, pole=POLE)
        assert page.open == []
        assert {tag for tag, _ in page.elements} <= HARMLESS | DRAWN
        # Every reply shown, and each label in the tables and above its replies.
        assert len([t for t in page.texts if t.strip() == evil]) > 3 * len(STRENGTHS)
        assert len([t for t in page.texts if t.strip() == COMMENT]) > len(STRENGTHS)


def test_unscored_answers_are_counted_and_shown(page):
    scores = (1 + 2 * len(STRENGTHS)) * 2 * 4
    assert f"{scores} scores, {2 * 2 * 3} unscored." in page.text
    assert page.comments.count("3 unscored") == 2 * 2  # beside the points in the figure


def test_a_cell_without_any_score_is_left_out_and_counted(tmp_path):
    page = write_run(tmp_path, unscored=8)
    assert f"{2 * 2 * 8} unscored." in page.text
    table = pd.read_csv(tmp_path / "dose_response.csv")
    judged = table[table["measure"] == "judge"]
    assert set(judged["n"]) == {len(STRENGTHS) - 1}
    assert set(judged["unscored"]) == {8}


@pytest.mark.usefixtures("page")
def test_the_tables_and_figures_lie_beside_the_page(folder):
    for name in ("dose_response", "pareto"):
        ElementTree.parse(folder / f"{name}.svg")
        assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    keys = ["intervention", "trait", "measure"]
    table = pd.read_csv(folder / "dose_response.csv").set_index(keys)
    assert table.loc[("weights", "extraversion", "probe")]["slope"] == pytest.approx(1.0)
    assert table.loc[("weights", "openness", "probe")]["slope"] == pytest.approx(0.1)
    matched = pd.read_csv(folder / "matched_effect.csv")
    assert matched["shift"].tolist() == pytest.approx([0.7, 0.7])
    rows = [
        len(pd.read_csv(folder / "measures.csv")),
        len(pd.read_parquet(folder / "measures.parquet")),
    ]
    assert rows[0] == rows[1] > 0


@pytest.mark.usefixtures("page")
def test_the_same_results_write_the_same_bytes(folder):
    def written():
        return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix != ".sqlite"}

    before = written()
    with Results.reopen(folder / "results.sqlite") as again:
        write_report(again, folder)
    assert {"report.html", "pareto.svg", "pareto.png", "answers.parquet"} <= before.keys()
    after = written()
    assert [name for name in before if after[name] != before[name]] == []


@pytest.mark.usefixtures("page")
def test_the_first_three_answers_of_each_strength_are_shown(folder):
    with Results.reopen(folder / "results.sqlite") as results:
        shown = sample_answers(results, "weights")
    assert list(shown) == list(STRENGTHS)
    assert shown[0.5] == ["weights 0.5 0", "weights 0.5 1", "weights 0.5 2"]


@pytest.mark.parametrize("labels", [(), ("one",)], ids=["evaluation", "one intervention"])
def test_a_small_run_has_a_page_too(tmp_path, labels):
    text = write_run(tmp_path, labels).text
    assert ("Evaluation" if not labels else "Sweep") in text
    assert "0.875" in text


def test_a_label_is_not_read_as_mathematics(tmp_path):
    assert "$\\frac$" in write_run(tmp_path, ("$\\frac$",)).texts


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
