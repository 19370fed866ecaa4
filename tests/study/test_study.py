"""The study: any objects of the protocols; nothing finished is measured twice."""

import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import personality_vector as pv
from personality_vector.errors import (
    CheckpointError,
    DataError,
    NonFiniteError,
    OutputExistsError,
    RecipeError,
)
from personality_vector.study.design import BASE, Arm
from personality_vector.study.judging import judge_run
from personality_vector.study.run import READINGS, Run
from personality_vector.study.store import FILE, Store
from personality_vector.subject.protocols import Findings, Reading, Rubric, Score
from tests.study.fakes import Asked, Counted, Rates, Shifted, forked, noted


@pytest.fixture
def arms(tmp_path):
    """Return two interventions, one of which reads a file."""
    file = tmp_path / "vector.bin"
    file.write_bytes(b"one")
    return [Shifted("small", 0.5), Shifted("large", 2.0, file)]


def rows(frame):
    """Return a frame without what differs from run to run: nothing, but for the order."""
    return frame.sort_values(list(READINGS)[:6], ignore_index=True)


def test_a_study_of_foreign_objects_gives_one_row_for_each_number(base, arms, log, tmp_path):
    study = pv.study(base, arms, [-1.0, 1.0], [Counted(log)], seeds=[0, 1])
    frame = study.run(tmp_path / "run").readings()
    assert list(frame.columns) == list(READINGS)
    keys = frame[list(READINGS)[:6]]
    assert not keys.duplicated().any()
    assert len(frame) == (1 + 2 * 2) * 2 == len(noted(log))
    value = frame.set_index(["intervention", "strength", "seed"])["value"]
    for arm in arms:
        for strength in (-1.0, 1.0):
            moved = value[arm.label, strength, 1] - value[BASE, 0.0, 1]
            assert moved == pytest.approx(strength * arm.size, abs=1e-4)
    pd.testing.assert_frame_equal(study.readings(), frame)
    exported = Run(tmp_path / "run").export()
    assert {path.name for path in exported} >= {"readings.csv", "answers.csv"}
    read = pd.read_csv(tmp_path / "run" / "readings.csv", keep_default_na=False)
    assert list(read.columns) == list(READINGS)
    assert len(read) == len(frame)


def test_only_what_is_missing_is_measured(base, arms, log, tmp_path):
    """A strength, a seed, a measure, an arm and a changed file cost their own cells alone."""
    run, file = tmp_path / "run", arms[1].file

    def measured(**changes):
        before = len(noted(log))
        given = {
            "interventions": arms,
            "strengths": [1.0],
            "measures": [Counted(log)],
            "seeds": [0],
        } | changes
        pv.study(base, **given).run(run)
        return len(noted(log)) - before

    assert measured() == 3
    assert measured() == 0
    assert measured(strengths=[1.0, 2.0]) == 2
    assert measured(strengths=[1.0, 2.0], seeds=[0, 1]) == 5
    assert measured(measures=[Counted(log), Counted(log, "again")]) == 3
    assert measured(measures=[Counted(log), Counted(log, options=1, name="other")]) == 3
    assert measured(interventions=[*arms, Shifted("new", 3.0)]) == 1
    assert measured(interventions=[replace(arms[0], label="renamed"), arms[1]]) == 0
    file.write_bytes(b"two")
    assert measured() == 1
    file.write_bytes(b"one")
    assert measured() == 0, "what was superseded is still in the store"


def test_the_readings_are_those_of_the_latest_recipe(base, arms, log, tmp_path):
    run = tmp_path / "run"
    pv.study(base, arms, [1.0, 2.0], [Counted(log)], seeds=[0, 1]).run(run)
    assert len(Run(run).readings()) == 10
    pv.study(base, arms[:1], [2.0], [Counted(log)]).run(run)
    frame = Run(run).readings()
    assert frame["intervention"].tolist() == [BASE, "small"]
    arms[1].file.write_bytes(b"changed")
    pv.study(base, arms, [1.0], [Counted(log)]).run(run)
    with Store.open(run / FILE) as store:
        assert store.connection.execute("SELECT COUNT(*) FROM cells").fetchone()[0] == 11
    assert len(Run(run).readings()) == 3


def test_a_judge_that_is_added_rates_stored_answers_once(base, arms, log, tmp_path):
    run, scored = tmp_path / "run", tmp_path / "scores.txt"
    first = Asked(log, [Rates(scored)])
    pv.study(base, arms, [1.0], [first]).run(run)
    asked, rated = len(noted(log)), len(noted(scored))
    assert (asked, rated) == (3, 6)
    both = Asked(log, [Rates(scored), Rates(scored, "second")])
    frame = pv.study(base, arms, [1.0], [both]).run(run).readings()
    assert len(noted(log)) == asked
    assert len(noted(scored)) == 2 * rated
    assert set(frame["judge"]) == {"reads", "second"}
    assert judge_run(run, Rates(scored, "third", mute=True)) == 3
    assert judge_run(run, Rates(scored, "third", mute=True)) == 3
    assert len(noted(scored)) == 3 * rated
    third = Run(run).readings().query("judge == 'third'")
    assert third["value"].isna().all()
    assert third["unscored"].tolist() == [2, 2, 2]
    assert Run(run).readings().query("judge == 'reads'")["n"].tolist() == [2, 2, 2]
    pv.study(base, arms, [1.0], [both]).run(run)
    assert "third" in set(Run(run).readings()["judge"]), "an appended judge stays"


def test_an_answer_carries_what_the_base_said(base, arms, log, tmp_path):
    scored = tmp_path / "scores.txt"
    pv.study(base, arms, [1.0], [Asked(log, [Rates(scored)])]).run(tmp_path / "run")
    lines = [line.split() for line in noted(scored)]
    said = {item: reply for _, item, reply, _ in lines[:2]}
    assert all(known == said[item] for _, item, _, known in lines)


def test_a_label_may_stand_for_one_intervention_of_each_seed(base, log, tmp_path):
    arm = Arm({seed: Shifted("trained", 1.0 + seed) for seed in (0, 1)}, [1.0])
    study = pv.study(base, [arm], measures=[Counted(log)], seeds=[0, 1])
    frame = study.run(tmp_path / "run").readings()
    value = frame.set_index(["intervention", "seed"])["value"]
    moved = [value["trained", seed] - value[BASE, seed] for seed in (0, 1)]
    assert moved == pytest.approx([1.0, 2.0], abs=1e-4)


def test_several_workers_measure_every_cell_once(base, arms, log, tmp_path):
    def study(seconds):
        return pv.study(base, arms, [1.0, 2.0, 3.0], [Counted(log, seconds=seconds)], [0, 1])

    serial = study(0.0).run(tmp_path / "serial").readings()
    once = sorted(noted(log))
    log.unlink()
    shared = study(0.05).run(tmp_path / "shared", workers=2).readings()
    assert sorted(noted(log)) == once
    pd.testing.assert_frame_equal(shared, serial)


def test_what_cannot_be_pickled_is_refused_by_name(base, log, tmp_path):
    class Local(Shifted):
        pass

    study = pv.study(base, [Local("local")], [1.0], [Counted(log)])
    with pytest.raises(RecipeError, match=r"^local cannot be pickled, which workers above 1 need"):
        study.run(tmp_path / "run", workers=2)
    assert not (tmp_path / "run").exists()
    assert len(study.run(tmp_path / "run").readings()) == 2


@pytest.mark.slow
def test_a_killed_worker_loses_at_most_its_cell(base, tmp_path):
    """Two processes, one of them killed with -9; the other ends with the rows of a serial run."""
    arms = [Shifted("small", 0.5), Shifted("large", 2.0)]
    strengths = [float(n) for n in range(1, 6)]
    pv.study(base, arms, strengths, [Counted(tmp_path / "serial.txt")]).run(tmp_path / "serial")
    log, out = tmp_path / "log.txt", tmp_path / "run"
    study = pv.study(base, arms, strengths, [Counted(log, seconds=0.15)])
    both = [forked(study, out) for _ in range(2)]
    while len(noted(log)) < 3:
        time.sleep(0.02)
    both[0].kill()
    for worker in both:
        worker.join()
    assert [worker.exitcode for worker in both] == [-9, 0]
    assert len(noted(log)) in (11, 12), "one cell at most was begun twice"
    expected, found = (rows(Run(tmp_path / name).readings()) for name in ("serial", "run"))
    pd.testing.assert_frame_equal(found, expected)


def test_a_lease_that_ran_out_while_its_worker_lived(base, log, tmp_path, caplog):
    """What the other worker found stands; this one says so and goes on."""
    study = pv.study(base, [Shifted("small")], [1.0], [Counted(log)])
    run = tmp_path / "run"
    study.run(run)
    before = Run(run).readings()
    with Store.open(run / FILE) as one, Store.open(run / FILE, lease=0.0) as asleep:
        cell = one.planned()[1].cell
        for table, key in (("readings", "cell"), ("cells", "id")):
            one.connection.execute(f"DELETE FROM {table} WHERE {key} = 2")
        one.connection.execute("DELETE FROM run WHERE key = 'digest'")  # as in an earlier version
        with asleep.claimed([cell]) as mine:
            assert mine == [cell]
            time.sleep(0.01)
            with one.claimed([cell]) as taken:
                assert taken == [cell]
                found = Counted(log).finish(None, 7.0)
                assert not asleep.write(cell, found, 1.0)
                assert one.write(cell, Counted(log).finish(None, 8.0), 1.0)
    assert "another worker took it over" in caplog.text
    after = Run(run).readings()
    assert after["value"].tolist() == [before["value"][0], 8.0]


def test_a_live_claim_is_waited_for_and_a_dead_one_is_not(base, log, tmp_path):
    study = pv.study(base, [Shifted("small")], [1.0], [Counted(log)])
    run = tmp_path / "run"
    study.run(run)
    with Store.open(run / FILE) as store:
        cell = store.planned()[1].cell
        store.connection.execute("DELETE FROM cells WHERE strength = 1.0")
        with store.claimed([cell]), Store.open(run / FILE) as other:
            with other.claimed([cell]) as mine:
                assert mine == []
            gone = subprocess.Popen([sys.executable, "-c", ""])
            gone.wait()
            store.connection.execute("UPDATE claims SET pid = ?", (gone.pid,))
            with other.claimed([cell]) as mine:
                assert mine == [cell]


def test_an_earlier_format_is_refused_by_name_and_replaced_by_force(base, log, tmp_path):
    import sqlite3

    (tmp_path / "run").mkdir()
    with sqlite3.connect(tmp_path / "run" / FILE) as old:
        for table in ("run", "cells", "answers", "measures"):
            old.execute(f"CREATE TABLE {table} (key TEXT, value TEXT)")
    old.close()
    study = pv.study(base, [Shifted("small")], [1.0], [Counted(log)])
    with pytest.raises(CheckpointError, match="holds results of format 1, but this version"):
        study.run(tmp_path / "run")
    assert len(study.run(tmp_path / "run", force=True).readings()) == 2


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"strengths": []}, RecipeError, "small: give at least one strength"),
        ({"strengths": [1.0, 1.0]}, RecipeError, "each only once"),
        ({"strengths": [float("nan")]}, NonFiniteError, "must be a finite number"),
        ({"strengths": {"large": [1.0]}}, RecipeError, "small: has no strengths"),
        ({"interventions": [Shifted("base")]}, RecipeError, "the label 'base' is reserved"),
        ({"interventions": [Shifted("a"), Shifted("a", 2.0)]}, RecipeError, "interventions are"),
        ({"interventions": [Shifted("a", steps=(0, 1))], "strengths": [2]}, RecipeError, "a: "),
        ({"measures": []}, RecipeError, "needs at least one measure"),
        ({"seeds": [0, 0]}, RecipeError, "each seed only once"),
        ({"seeds": [0, True]}, RecipeError, "seeds are whole numbers below"),
        ({"seeds": [2**63]}, RecipeError, "seeds are whole numbers below"),
        ({"strengths": {"small": [1.0], "tiny": [1.0]}}, RecipeError, "given for tiny, but no"),
        (
            {"interventions": [Arm({1: Shifted("a")}, [1.0])]},
            RecipeError,
            "lacks an intervention for seed 0",
        ),
    ],
)
def test_what_cannot_be_studied_is_refused_before_anything_is_written(
    base, log, tmp_path, given, error, says
):
    asked = {
        "interventions": [Shifted("small")],
        "strengths": [1.0],
        "measures": [Counted(log)],
    } | given
    with pytest.raises(error, match=says):
        pv.study(base, **asked).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_arm_has_one_label():
    for by_seed in ({}, {0: Shifted("a"), 1: Shifted("b")}):
        with pytest.raises(RecipeError, match="an arm needs one intervention"):
            Arm(by_seed, [1.0])


def test_no_label_stands_for_another(base, log, tmp_path):
    """Not even one that looks like the seed of another."""
    arms = [Shifted("a", 0.5), Shifted("a, seed 0", 2.0)]
    frame = pv.study(base, arms, [1.0], [Counted(log)]).run(tmp_path / "run").readings()
    assert frame["value"].nunique() == 3


def test_force_keeps_the_old_results_until_there_are_new_ones(base, arms, log, tmp_path):
    class Fails(Counted):
        def prepare(self, base):
            raise RecipeError("no")

    run = pv.study(base, arms, [1.0], [Counted(log)]).run(tmp_path / "run")
    before, files = run.readings(), {path.name for path in run.folder.iterdir()}
    with pytest.raises(RecipeError, match="no"):
        pv.study(base, measures=[Fails(log)]).run(run.folder, force=True)
    pd.testing.assert_frame_equal(run.readings(), before)
    assert {path.name for path in run.folder.iterdir()} == files
    forced = pv.study(base, arms[:1], [2.0], [Counted(log)]).run(run.folder, force=True)
    assert len(forced.readings()) == 2
    assert {path.name for path in run.folder.iterdir()} == files


def with_value(thing, value):
    """Return a frozen record with a value that the checks of types under test would refuse."""
    object.__setattr__(thing, "value", value)
    return thing


def test_numbers_of_numpy_and_torch_are_numbers(base, log, tmp_path):
    class Measured(Counted):
        scale = (np.float32(0), np.float32(1))

        def finish(self, base, collected):
            first = with_value(Reading("mean.a", 0.0), np.float32(0.5))
            return Findings(
                readings=[first, with_value(Reading("mean.b", 0.0), torch.tensor(0.25))]
            )

    class Scored(Rates):
        def __call__(self, rubric, answers):
            return [with_value(Score(0.0), np.float32(3)) for _ in answers]

    measures = [Measured(log), Asked(log, [Scored(log)])]
    frame = pv.study(base, measures=measures).run(tmp_path / "run").readings()
    assert sorted(set(frame["value"])) == [0.25, 0.5, 3.0]


def test_a_recipe_that_was_replaced_meanwhile_stops_and_leaves_the_tables(base, log, tmp_path):
    newer = pv.study(base, [Shifted("newer")], [1.0], [Counted(log)])

    class Slow(Counted):
        def collect(self, subject, seed):
            if not (tmp_path / "begun").exists():
                (tmp_path / "begun").touch()
                newer.run(tmp_path / "run")
            return super().collect(subject, seed)

    older = pv.study(base, [Shifted("older")], [1.0], [Slow(log, options=1)])
    with pytest.raises(RecipeError, match="another recipe was started there"):
        older.run(tmp_path / "run")
    assert set(Run(tmp_path / "run").readings()["intervention"]) == {BASE, "newer"}
    older.run(tmp_path / "run")
    assert set(Run(tmp_path / "run").readings()["intervention"]) == {BASE, "older"}


def test_numbers_judges_and_rubrics_are_told_apart_by_their_names(base, log, tmp_path):
    def ask(*measures):
        return pv.study(base, measures=measures).run(tmp_path / "run")

    class Other(Counted):
        def finish(self, base, collected):
            return Findings(readings=[Reading("length", 1.0)])

    with pytest.raises(RecipeError, match="begins with the name of another measure"):
        ask(Counted(log), Counted(log, "mean.x"))
    with pytest.raises(DataError, match="found length; the name of a number must be mean"):
        ask(Other(log))
    with pytest.raises(RecipeError, match="two rubrics of asked are called kindness"):
        ask(Asked(log, rubrics=[Rubric("kindness"), Rubric("kindness", "warm")]))


def test_what_is_said_of_an_appended_judge_stays(base, log, tmp_path):
    study = pv.study(base, measures=[Asked(log, [Rates(log)])])
    judge_run(study.run(tmp_path / "run").folder, Rates(log, "late"))
    study.run(tmp_path / "run")
    assert list(Run(tmp_path / "run")["judges"]) == ["reads", "late"]


def test_two_measures_of_one_name_are_refused(base, log):
    with pytest.raises(RecipeError, match="two measures are called mean"):
        pv.study(base, measures=[Counted(log), Counted(log, options=1)])


class Broken(Counted):
    """A measure that gives no number, or fails."""

    def finish(self, base, collected):
        found = super().finish(base, collected)
        if collected > 0.5:
            return replace(found, readings=[replace(found.readings[0], value=float("inf"))])
        return found


def test_a_failed_cell_is_not_written_and_the_rest_stays(base, log, tmp_path):
    study = pv.study(base, [Shifted("small")], [0.1, 1.0], [Broken(log)])
    with pytest.raises(NonFiniteError, match="mean boldness: is inf at strength 1") as refused:
        study.run(tmp_path / "run")
    assert any("small" in note for note in refused.value.__notes__)
    frame = Run(tmp_path / "run").readings()
    assert frame["strength"].tolist() == [0.0, 0.1]
    with Store.open(tmp_path / "run" / FILE) as store:
        assert store.connection.execute("SELECT COUNT(*) FROM claims").fetchone()[0] == 0


def test_a_study_that_measured_nothing_leaves_nothing(base, log, tmp_path):
    class Fails(Counted):
        def collect(self, subject, seed):
            raise RecipeError("no")

    with pytest.raises(RecipeError):
        pv.study(base, measures=[Fails(log)]).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match="is not a results folder"):
        pv.study(base, measures=[Counted(log)]).run(tmp_path / "theirs")
    assert (tmp_path / "theirs" / "thesis.txt").read_text() == "mine"
