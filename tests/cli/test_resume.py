"""Resuming a sweep: the same run goes on, any other one is refused."""

import pytest
import torch

from personality_vector.steering import SteeringVector
from personality_vector.study import sweep
from personality_vector.study.store import Results
from personality_vector.traits import Pole


@pytest.fixture
def measured(monkeypatch):
    """Return the list that every cell measured from now on is noted in."""
    cells = []
    real = sweep.Bench.findings

    def noted(self, label, strength):
        cells.append((label, strength))
        return real(self, label, strength)

    monkeypatch.setattr(sweep.Bench, "findings", noted)
    return cells


@pytest.fixture
def short(pvec, lab, tmp_path):
    """Return ``short(*settings)``: sweep one strength without side effects into ``run/``."""

    def call(*settings, force=False):
        words = [word for text in settings for word in ("--set", text)]
        words += ["--set", "strengths=[1.0]", "--set", "measure.side_effects=false"]
        return pvec(
            "sweep", lab.sweep, *words, "--out", tmp_path / "run", *["--force"] * force, "--json"
        )

    return call


def test_a_finished_sweep_is_printed_again_without_measuring(short, measured):
    first = short()
    assert first.code == 0
    assert measured == [("base", 0.0), ("weights", 1.0)]
    measured.clear()
    assert short() == first
    assert measured == []


def test_another_recipe_is_refused_and_force_starts_anew(short, measured, tmp_path):
    assert short().code == 0
    refused = short("seed=1")
    assert refused.code == 1
    assert "holds the results of another run: seed differ" in refused.err
    measured.clear()
    assert short("seed=1", force=True).code == 0
    assert len(measured) == 2
    with Results.reopen(tmp_path / "run" / "results.sqlite") as results:
        assert results.spec["seed"] == 1


def test_a_folder_of_something_else_is_refused(short, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    ended = short()
    assert ended.code == 1
    assert "exists and holds no results of ours" in ended.err
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("wrong", ["base=/no/such/base", "interventions.0.tuned=/no/such/model"])
def test_force_keeps_old_results_until_the_new_run_can_start(short, tmp_path, wrong):
    assert short().code == 0
    assert short(wrong, force=True).code == 1
    with Results.reopen(tmp_path / "run" / "results.sqlite") as results:
        assert len(results.frame("cells")) == 2


def test_force_never_writes_into_a_folder_of_something_else(short, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.html").write_text("mine")
    assert short(force=True).code == 1
    assert (tmp_path / "run" / "report.html").read_text() == "mine"


def test_a_retrained_intervention_at_the_same_path_is_another_run(short, pico_tuned, tmp_path):
    link = tmp_path / "tuned"
    link.symlink_to(pico_tuned("llama"))
    change = f"interventions.0={{label: w, tuned: {link}}}"
    assert short(change).code == 0
    link.unlink()
    link.symlink_to(pico_tuned("llama", seed=1))
    assert short(change).code == 1


def test_other_statements_at_the_same_path_are_another_run(short, lab, tmp_path):
    file = tmp_path / "statements.jsonl"
    text = (lab.folder / "statements.jsonl").read_text()
    file.write_text(text)
    assert short(f"measure.statements={file}").code == 0
    file.write_text(text.replace("parties", "books"))
    assert short(f"measure.statements={file}").code == 1


def test_a_vector_of_another_model_is_refused(short, tmp_path):
    directions, pole = {0: torch.ones(48)}, Pole("openness", "high")
    SteeringVector(directions, "f" * 32, pole, "v", "", (1, 1)).save(tmp_path / "v")
    ended = short(f"interventions.0={{label: v, vector: {tmp_path / 'v'}, layers: [0]}}")
    assert ended.code == 1
    assert "v: was extracted from model ffffffffffff, but" in ended.err


def test_a_delta_of_another_base_is_refused(short, lab, tmp_path, pico_tuned, pvec):
    other = pico_tuned("llama", seed=1)
    assert pvec("diff", other, lab.tuned, "--out", tmp_path / "delta").code == 0
    ended = short(f"interventions.0={{label: d, delta: {tmp_path / 'delta'}}}")
    assert ended.code == 1
    assert "delta: is a delta of base" in ended.err
