"""Runs go on where they stopped; what a changed recipe adds is measured, and nothing else."""

import errno
import sqlite3
from contextlib import closing

import pytest
import torch

from personality_vector.steering import SteeringVector
from personality_vector.study.run import Run
from personality_vector.study.store import FILE
from personality_vector.study.worker import Worker
from personality_vector.traits import Pole

LIKELIHOOD = "{likelihood: {traits: [extraversion, openness], statements: statements.jsonl}}"
INTERVIEW = (
    "{interview: {traits: [%s], question: Who, generation: {max_new_tokens: 4}, judges: [%s]}}"
)
JUDGE = "{classifier: {name: %s, statements: statements.jsonl, neutral: null}}"


@pytest.fixture
def measured(monkeypatch):
    """Return the list that every cell measured from now on is noted in."""
    cells = []
    real = Worker._found

    def noted(self, found, point, memory):
        cells.extend((*point, measure.name) for measure in found.values())
        return real(self, found, point, memory)

    monkeypatch.setattr(Worker, "_found", noted)
    return cells


@pytest.fixture
def short(pvec, lab, tmp_path, measured, monkeypatch):
    """Return ``short(*settings)``: sweep one strength of the weights into ``run/``.

    Paths of settings count from the lab, and ``measured`` holds the cells of this run alone. No
    page is drawn, which takes longer than the run.
    """
    monkeypatch.chdir(lab.folder)
    page = "personality_vector.report.page.write_report"
    monkeypatch.setattr(page, lambda run: run.folder / "report.html")

    def call(*settings, force=False, measures=(LIKELIHOOD,)):
        measured.clear()
        given = ["strengths=[1.0]", f"measures=[{', '.join(measures)}]", *settings]
        words = [word for text in given for word in ("--set", text)]
        forced = ["--force"] * force
        return pvec("sweep", lab.sweep, *words, "--out", tmp_path / "run", *forced, "--json")

    return call


def test_a_finished_sweep_is_printed_again_without_measuring(short, measured):
    first = short()
    assert (first.code, first.err) == (0, "")
    assert measured == [("base", 0.0, 0, "likelihood"), ("weights", 1.0, 0, "likelihood")]
    assert short() == first
    assert measured == []


def test_what_is_added_is_all_that_is_measured_and_the_tables_are_of_the_latest(
    short, measured, tmp_path
):
    """A strength, a seed, an intervention, a measure, a trait to rate answers for, a judge."""
    run = tmp_path / "run"
    assert short().code == 0
    assert short("strengths=[1.0, 2.0]").code == 0
    assert measured == [("weights", 2.0, 0, "likelihood")]
    assert short("seeds=[0, 1]").code == 0
    assert measured == [("base", 0.0, 1, "likelihood"), ("weights", 1.0, 1, "likelihood")]
    assert set(Run(run).readings()["strength"]) == {0.0, 1.0}
    arms = "interventions=[{label: p, prompt: 'openness:high'}]"
    assert short(arms).code == 0
    assert measured == [("p", 1.0, 0, "likelihood")]
    assert set(Run(run).readings()["intervention"]) == {"base", "p"}
    asked = INTERVIEW % ("openness", JUDGE % "first")
    assert short(measures=(LIKELIHOOD, asked)).code == 0
    assert measured == [("base", 0.0, 0, "interview"), ("weights", 1.0, 0, "interview")]
    judges = ", ".join(JUDGE % name for name in ("first", "second"))
    both = INTERVIEW % ("openness, extraversion", judges)
    assert short(measures=(LIKELIHOOD, both)).code == 0
    assert measured == [], "answers are rated without being asked for again"
    frame = Run(run).readings().query("measure == 'interview'")
    rated = frame.groupby(["intervention", "judge", "trait"])[["n", "unscored"]].sum().sum(axis=1)
    assert len(rated) == 2 * 2 * 2
    assert set(rated) == {1}


def test_force_forgets_what_the_folder_holds(short, measured, tmp_path):
    assert short("seeds=[0, 1]").code == 0
    assert short(force=True).code == 0
    assert len(measured) == 2
    assert set(Run(tmp_path / "run").readings()["seed"]) == {0}


@pytest.mark.parametrize("tables", [None, ""], ids=["before", "after"])
@pytest.mark.parametrize("force", [False, True])
def test_a_force_that_was_killed_loses_nothing(short, measured, tmp_path, tables, force):
    """Killed before or after it made a new file, which is then empty."""
    run = tmp_path / "run"
    assert short().code == 0
    first = Run(run).readings()
    (run / FILE).rename(run / f".old-{FILE}")
    if tables is not None:
        sqlite3.connect(run / FILE).close()
    assert short("base=/no/such", force=force).code == 1
    refused = short("interventions.0.tuned=/no/such", force=force)
    assert (refused.code, measured) == (1, [])
    assert short(force=force).code == 0
    assert len(measured) == (0 if tables is None and not force else 2)
    assert Run(run).readings().equals(first)
    assert not list(run.glob(".*"))


def test_what_a_killed_force_put_aside_returns_if_the_new_run_fails(short, tmp_path, monkeypatch):
    run = tmp_path / "run"
    assert short().code == 0
    first = Run(run).readings()
    (run / FILE).rename(run / f".old-{FILE}")
    sqlite3.connect(run / FILE).close()
    (run / f"{FILE}.mine").write_text("kept")

    def fail(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(Worker, "_found", fail)
    assert short(force=True).code == 4
    assert Run(run).readings().equals(first)
    assert (run / f"{FILE}.mine").read_text() == "kept"


@pytest.mark.parametrize("name", ["thesis.txt", "report.html"])
def test_a_folder_of_something_else_is_refused_with_and_without_force(short, tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    for force in (False, True):
        ended = short(force=force)
        assert ended.code == 1
        assert "exists but is not a results folder" in ended.err
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]
    assert (tmp_path / "run" / name).read_text() == "mine"


def test_force_never_deletes_a_database_that_is_not_ours(short, tmp_path):
    (tmp_path / "run").mkdir()
    file = tmp_path / "run" / FILE
    with closing(sqlite3.connect(file)) as theirs:
        theirs.execute("CREATE TABLE thesis (chapter TEXT)")
    for force in (False, True):
        ended = short(force=force)
        assert ended.code == 1
        assert "is an SQLite file without results" in ended.err
    with closing(sqlite3.connect(file)) as kept:
        assert kept.execute("SELECT name FROM sqlite_master").fetchall() == [("thesis",)]


def test_results_of_an_earlier_format_are_named_and_replaced_by_force(short, tmp_path, pvec):
    (tmp_path / "run").mkdir()
    with closing(sqlite3.connect(tmp_path / "run" / FILE)) as old:
        for table in ("run", "cells", "answers", "measures"):
            old.execute(f"CREATE TABLE {table} (key TEXT, value TEXT)")
    for ended in (short(), pvec("judge", tmp_path / "run", "--judge", "classifier")):
        assert ended.code == 1
        assert "holds results of format 1, but this version writes format 2" in ended.err
    assert short(force=True).code == 0


@pytest.mark.parametrize("wrong", ["base=/no/such/base", "interventions.0.tuned=/no/such/model"])
def test_force_keeps_old_results_until_the_new_run_can_start(short, tmp_path, wrong):
    assert short().code == 0
    assert short(wrong, force=True).code == 1
    assert len(Run(tmp_path / "run").readings()) == 4


def test_what_another_file_at_the_same_path_says_is_measured_anew(
    short, measured, lab, pico_tuned, tmp_path
):
    """A retrained model costs its own cells, other statements those of their measure."""
    link, file = tmp_path / "tuned", tmp_path / "statements.jsonl"
    link.symlink_to(pico_tuned("llama"))
    text = (lab.folder / "statements.jsonl").read_text()
    file.write_text(text)
    change = f"interventions.0={{label: w, tuned: {link}}}"
    own = LIKELIHOOD.replace("statements.jsonl", str(file))
    assert short(change, measures=(own,)).code == 0
    before = Run(tmp_path / "run").readings()
    link.unlink()
    link.symlink_to(pico_tuned("llama", seed=1))
    assert short(change, measures=(own,)).code == 0
    assert measured == [("w", 1.0, 0, "likelihood")]
    after = Run(tmp_path / "run").readings()
    assert (before["value"] != after["value"]).tolist() == [False, False, True, True]
    file.write_text(text.replace("parties", "books"))
    assert short(change, measures=(own,)).code == 0
    assert len(measured) == 2


def test_a_vector_of_another_model_is_refused(short, tmp_path):
    directions, pole = {0: torch.ones(48)}, Pole("openness", "high")
    SteeringVector(directions, "f" * 32, pole, "v", "", (1, 1)).save(tmp_path / "v")
    ended = short(f"interventions.0={{label: v, vector: {tmp_path / 'v'}, layers: [0]}}")
    assert ended.code == 1
    assert "from model ffffffffffff, but" in ended.err


def test_a_delta_of_another_base_is_refused(short, lab, tmp_path, pico_tuned, pvec):
    other = pico_tuned("llama", seed=1)
    assert pvec("diff", other, lab.tuned, "--out", tmp_path / "delta").code == 0
    ended = short(f"interventions.0={{label: d, delta: {tmp_path / 'delta'}}}")
    assert ended.code == 1
    assert "delta: is a delta of base" in ended.err
