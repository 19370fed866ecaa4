"""Points that share a batch: their numbers are those of points one by one."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import pytest
import torch

import personality_vector as pv
from personality_vector.data.personas import Instrument, Item
from personality_vector.data.statements import Statement
from personality_vector.delta import Delta
from personality_vector.errors import NonFiniteError, RecipeError, RowsError
from personality_vector.interventions.activations import ActivationSteering
from personality_vector.interventions.prompts import SystemPrompt
from personality_vector.interventions.weights import WeightEdit
from personality_vector.measures.activations import Activations
from personality_vector.measures.cost import Cost
from personality_vector.measures.divergence import Divergence
from personality_vector.measures.guards import Guards
from personality_vector.measures.interview import Interview
from personality_vector.measures.likelihood import Likelihood
from personality_vector.measures.spec import Asking
from personality_vector.merging.merged import merged
from personality_vector.numeric.random import generator_for
from personality_vector.report.page import write_report
from personality_vector.steering import SteeringVector
from personality_vector.study import batches
from personality_vector.study.design import grid_of
from personality_vector.study.recipe import SweepRecipe
from personality_vector.study.run import READINGS, Run
from personality_vector.study.tables import remarks
from personality_vector.subject import subject
from personality_vector.subject.protocols import Findings, Reading, Rubric
from personality_vector.subject.spec import Sampling
from tests.study.fakes import forked, note, noted

STRENGTHS = [-1.0, 0.0, 0.5, 1.5]
ASKING = Asking(
    Instrument(
        name="i",
        version="1",
        items=(Item(id="a", text="Who are you?"), Item(id="b", text="What do you do?")),
    ),
    Sampling(8, 0.6, 0.9),
)
STATEMENTS = [
    Statement("extraversion", level, text, "held_out", "s")
    for level, text in (("high", "I talk at every party"), ("low", "I am quiet"))
]


def vector(label="vector", size=1.0):
    drawn = {1: size * torch.randn(48, generator=generator_for(1, "v"))}
    return ActivationSteering(SteeringVector(drawn, "", None, label, "response_mean", (1, 1)), [1])


@pytest.fixture
def linear(base, pico_tuned):
    """Return an edit of linear layers alone."""
    include = ["*.self_attn.*.weight", "*.mlp.*.weight"]
    return WeightEdit(merged(base, [(pico_tuned("llama"), 1.0)], include=include), "linear")


@pytest.fixture
def asked():
    """Return measures that share batches."""
    return [
        Likelihood(STATEMENTS),
        Interview(ASKING, [Rubric("extraversion")]),
        Divergence(ASKING),
        Guards(ASKING),
    ]


@pytest.fixture
def shared(monkeypatch):
    """Return the list that every batch notes its number of points in."""
    found, real = [], batches.together

    def noting(subject, shares):
        found.append(len(shares))
        return real(subject, shares)

    monkeypatch.setattr(batches, "together", noting)
    return found


def close(found, expected):
    """Check that two frames of readings differ by rounding alone."""
    order = list(READINGS)[:6]
    one, other = (frame.sort_values(order, ignore_index=True) for frame in (found, expected))
    pd.testing.assert_frame_equal(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_numbers_in_shared_batches_are_those_of_points_one_by_one(
    base, linear, asked, shared, tmp_path
):
    """Of a vector, of weights, and of a prompt, whose seeds share batches."""
    arms = [vector(), linear, SystemPrompt("You love a party.", label="prompt")]
    given = {"vector": STRENGTHS, "linear": STRENGTHS, "prompt": [1.0]}

    def run(name, how):
        study = pv.study(base, arms, given, asked, seeds=[0, 1], batch_strengths=how)
        return study.run(tmp_path / name)

    alone = run("alone", "never")
    assert shared == []
    together = run("together", "auto")
    assert shared == [6] * 4 + [6] * 4 + [2] * 4
    close(together.readings(), alone.readings())
    pd.testing.assert_frame_equal(together.answers(), alone.answers())
    pd.testing.assert_frame_equal(
        together.observations(), alone.observations(), atol=1e-4, rtol=1e-4
    )


def test_no_more_points_share_a_batch_than_fill_it(base, shared, tmp_path):
    asking = replace(ASKING, sampling=replace(ASKING.sampling, batch_size=4))
    two = [Interview(asking, [Rubric("extraversion")])]
    pv.study(base, [vector()], [1.0, 2.0, 3.0], two).run(tmp_path / "two")
    assert shared == [2], "two chats of two points fill it, and the third is alone"
    full = [Interview(replace(asking, sampling=replace(asking.sampling, batch_size=3)), [])]
    pv.study(base, [vector()], [1.0, 2.0, 3.0], full).run(tmp_path / "full")
    assert shared == [2], "a full batch is that of one point"
    pv.study(base, [vector()], [1.0, 2.0], [*full, replace(two[0], name="two")]).run(tmp_path / "m")
    assert shared == [2, 2], "and stays so beside a measure that shares its own"


def test_every_worker_has_a_share_and_a_divergence_bounds_what_is_kept(base, asked):
    """Its temporary files are open at once, one for each point."""
    strengths = [float(n) for n in range(1, 11)]
    study = pv.study(base, [vector()], strengths, asked)
    points = grid_of(study)[1]

    def sizes(workers, measures):
        return [len(group) for group in batches.Batches(study, workers).of(points, measures)]

    assert sizes(1, asked[1:2]) == [10]
    assert sizes(4, asked[1:2]) == [3, 3, 3, 1]
    assert sizes(1, asked) == [8, 2]
    assert sizes(1, [*asked[:2], replace(asked[2], batch_size=4)]) == [4, 4, 2]


def test_what_reads_the_model_or_the_clock_is_measured_point_by_point(
    base, asked, shared, tmp_path, monkeypatch
):
    """Replies of shared batches are not drawn again for it, unless their seconds are wanted."""
    drawn, real = [], subject.generate_replies

    def noted(*given, **how):
        drawn.append(how["seed"])
        return real(*given, **how)

    monkeypatch.setattr(subject, "generate_replies", noted)
    pv.study(base, [vector()], STRENGTHS, [asked[1], Activations(ASKING)]).run(tmp_path / "reads")
    assert (shared, len(drawn)) == ([3], 1), "of the base"
    shared.clear()
    pv.study(base, [vector()], STRENGTHS, [asked[1], Cost(ASKING)]).run(tmp_path / "timed")
    assert (shared, len(drawn)) == ([3], 1 + 1 + 3)
    shared.clear()
    more = [*asked[:1], Activations(ASKING), Cost(ASKING)]
    found = pv.study(base, [vector()], STRENGTHS, more).run(tmp_path / "run").readings()
    assert shared == [3]
    alone = pv.study(base, [vector()], STRENGTHS, more, batch_strengths="never")
    expected = alone.run(tmp_path / "alone").readings()
    kept = [not name.endswith((".seconds", ".memory")) for name in found["measure"]]
    close(found[kept], expected[kept])


def test_an_edit_of_a_norm_goes_point_by_point_and_says_so_once(
    base, pico_tuned, asked, shared, tmp_path, caplog
):
    arm = WeightEdit(Delta.between(base, pico_tuned("llama")), "tuned")
    more = [n / 20 for n in range(1, 41)]  # than fit into one batch
    found = pv.study(base, [arm], more, asked[:1]).run(tmp_path / "run").readings()
    assert shared == []
    assert caplog.text.count("tuned: its strengths are measured one after another") == 1
    assert "embed_tokens.weight" in caplog.text
    exact = pv.study(base, [arm], more, asked[:1], batch_strengths="never")
    pd.testing.assert_frame_equal(exact.run(tmp_path / "exact").readings(), found)


def test_in_16_bits_an_edit_is_rounded_unless_the_recipe_says_otherwise(
    base, linear, asked, shared, tmp_path, caplog
):
    def run(how):
        arms = [linear, vector()]
        return pv.study(base, arms, [0.5, 1.0], asked, dtype="bfloat16", batch_strengths=how).run(
            tmp_path / "run"
        )

    exact = run("auto")
    assert shared == [2] * 4, "a vector is rounded alike in both ways"
    assert "linear: its strengths are measured one after another: each is rounded" in caplog.text
    assert remarks(exact) == []
    before = exact.readings().set_index(list(READINGS)[:6])
    unrounded = run("unrounded")
    assert shared == [2] * 8, "the cells of the vector are those that are there"
    assert remarks(unrounded) == ["strengths of linear were not rounded to bfloat16"]
    page = write_report(unrounded).read_text(encoding="utf-8")
    assert "bfloat16, to which the strengths of linear were not rounded;" in page
    after = unrounded.readings().set_index(list(READINGS)[:6])
    realised = [key for key in before.index if key[3] == "guards.realised"]
    assert {key[0] for key in realised} == {"linear"}
    assert set(before.index) - set(after.index) == set(realised)


def test_what_cannot_do_without_rounding_is_refused(base, pico_tuned, asked, tmp_path):
    arm = WeightEdit(Delta.between(base, pico_tuned("llama")), "tuned")
    study = pv.study(base, [arm], [1.0], asked[:1], dtype="bfloat16", batch_strengths="unrounded")
    with pytest.raises(
        RowsError, match=r"^tuned: it changes .*; leave out batch_strengths: unrounded"
    ):
        study.run(tmp_path / "run")


def test_an_error_at_one_strength_names_it_and_undoes_everything(base, linear, asked, tmp_path):
    study = pv.study(base, [linear], [1.0, 1e30], asked[:2])
    with pytest.raises(NonFiniteError) as caught:
        study.run(tmp_path / "run")
    notes = " ".join(caught.value.__notes__)
    assert "strength 1e+30" in notes
    assert "intervention linear" in notes
    assert set(Run(tmp_path / "run").readings()["intervention"]) == {"base"}


def test_a_recipe_chooses_and_the_default_leaves_no_trace(recipe):
    assert "batch_strengths" not in recipe().model_dump(mode="json")
    assert recipe(batch_strengths="never").model_dump(mode="json")["batch_strengths"] == "never"
    with pytest.raises(RecipeError, match="batch_strengths"):
        recipe(SweepRecipe, batch_strengths="sometimes")


@dataclass(frozen=True)
class Slow:
    """The likelihood of one chat, and a note of every point that was begun."""

    log: Path
    name: str = "slow"
    unit: str = "nats"
    scale: None = None
    better: str = "high"
    points_per_batch: int = 3

    def identity(self):
        return self.name

    def prepare(self, base):
        return self

    def collect(self, subject, seed):
        note(self.log, f"{seed}")
        time.sleep(0.15)
        chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "I talk"}]
        return float(subject.log_likelihood([chat]))

    def finish(self, base, collected):
        return Findings(readings=[Reading(self.name, collected, n=1)])


@pytest.mark.slow
def test_a_killed_worker_loses_at_most_its_batch(base, tmp_path):
    """Two processes, one killed with -9 within a batch: the rows are those of a serial run."""
    arms, strengths = [vector("one"), vector("two", 2.0)], [float(n) for n in range(1, 7)]
    serial = pv.study(base, arms, strengths, [Slow(tmp_path / "s.txt")], batch_strengths="never")
    expected = serial.run(tmp_path / "serial").readings()
    log, out = tmp_path / "log.txt", tmp_path / "run"
    study = pv.study(base, arms, strengths, [Slow(log)])
    both = [forked(study, out) for _ in range(2)]
    while len(noted(log)) < 4:  # after the base
        assert [worker.exitcode for worker in both] == [None, None]
        time.sleep(0.02)
    both[0].kill()
    for worker in both:
        worker.join()
    assert [worker.exitcode for worker in both] == [-9, 0]
    assert len(noted(log)) <= 13 + 3, "one batch at most was begun twice"
    close(Run(out).readings(), expected)
