"""Shards and workers: however the points are divided, the rows are those of a serial run."""

import multiprocessing
import os
import signal
import sqlite3
import threading
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

import personality_vector as pv
from personality_vector.errors import (
    CheckpointError,
    OutputExistsError,
    RecipeError,
    StorageError,
)
from personality_vector.study import shards
from personality_vector.study.design import BASE
from personality_vector.study.judging import judge_run
from personality_vector.study.run import Run
from personality_vector.study.shards import Shard, absent, sharded, unite
from personality_vector.study.store import FILE, Store
from personality_vector.subject.protocols import Findings, Observation, Reading
from tests.study.fakes import Asked, Counted, Rates, Shifted, forked, noted

STRENGTHS = [1.0, 2.0, 3.0]


@dataclass(frozen=True)
class Itemised(Counted):
    """A number with its items, beside the seconds that it took, which are different each time."""

    name: str = "items"

    def finish(self, base, collected):
        return Findings(
            readings=[
                Reading("items", collected, "boldness", n=2),
                Reading("items.seconds", time.monotonic(), n=1, unit="seconds"),
            ],
            observations=[
                Observation("items", "boldness", item, collected + sign)
                for item, sign in (("a", 1.0), ("b", -1.0))
            ],
        )


class Stricter(Rates):
    """Another judge."""

    def identity(self):
        return "stricter"


@pytest.fixture
def study(base, log, tmp_path):
    """Return ``study(**changes)``: two arms, two seeds, numbers and rated answers."""

    def make(**changes):
        judged = Asked(log, [Rates(tmp_path / "scores.txt")])
        given = {
            "interventions": [Shifted("small", 0.5), Shifted("large", 2.0)],
            "strengths": STRENGTHS,
            "measures": [Counted(log), Itemised(log), judged],
            "seeds": [0, 1],
        } | changes
        return pv.study(base, **given)

    return make


@pytest.fixture
def halves(study, tmp_path):
    """Return the folders of two shards, measured."""
    return [sharded(study(), Shard(i, 2)).run(tmp_path / f"half-{i}").folder for i in (1, 2)]


def tables(run):
    """Return everything measured, but for the seconds."""
    readings = run.readings().query("measure != 'items.seconds'")
    return [readings.reset_index(drop=True), run.answers(), run.observations()]


def require_same(found, expected):
    for one, other in zip(tables(found), tables(expected), strict=True):
        pd.testing.assert_frame_equal(one, other)


def rewritten(folder, statement):
    """Change a store as if it had been measured otherwise: its digest forgets what was there."""
    with closing(sqlite3.connect(folder / FILE)) as file:
        for (trigger,) in file.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'"):
            file.execute(f"DROP TRIGGER {trigger}")
        file.execute("DELETE FROM run WHERE key = 'digest'")
        file.execute(statement)
        file.commit()


@pytest.mark.slow
def test_two_workers_and_two_shards_give_the_rows_of_a_serial_run(study, halves, tmp_path):
    serial = study().run(tmp_path / "serial")
    require_same(study().run(tmp_path / "workers", workers=2), serial)
    require_same(unite(halves, tmp_path / "all"), serial)
    require_same(unite(halves[::-1], tmp_path / "turned"), serial)
    for name in ("units", "cells"):
        one, other = (getattr(Run(tmp_path / each), name)() for each in ("serial", "all"))
        assert len(one) == len(other)
    with Store.open(tmp_path / "all" / FILE):
        pass  # its digest is that of its rows


def test_each_shard_measures_its_points_and_the_base_that_they_need(halves):
    labels = [set(Run(one).readings()["intervention"]) for one in halves]
    assert labels == [{BASE, "small", "large"}] * 2
    points = [
        set(
            Run(one)
            .readings()
            .query("intervention != 'base'")[["intervention", "strength", "seed"]]
            .itertuples(index=False, name=None)
        )
        for one in halves
    ]
    assert len(points[0] | points[1]) == len(points[0]) + len(points[1]) == 2 * 3 * 2
    assert {seed for *_, seed in points[0]} == {0}, "every second point has one seed of two"
    assert set(Run(halves[0]).readings()["seed"]) == {0}
    assert Run(halves[0])["shard"] == [1, 2]
    cells = Run(halves[0]).cells()
    assert (len(cells), cells["finished"].sum()) == (14 * 3, 7 * 3)


def test_seeds_of_an_evaluation_are_divided(study, tmp_path):
    plain = study(interventions=[], strengths=[], seeds=[0, 1, 2])
    serial = plain.run(tmp_path / "serial")
    parts = [sharded(plain, Shard(i, 2)).run(tmp_path / str(i)).folder for i in (1, 2)]
    assert [Run(one).readings()["seed"].unique().tolist() for one in parts] == [[0, 2], [1]]
    require_same(unite(parts, tmp_path / "all"), serial)


def test_a_union_is_a_run_that_lacks_and_gains_cells(study, halves, log, tmp_path):
    """One shard is missing at first; what it would have measured can be measured here or added."""
    out = tmp_path / "all"
    half = unite(halves[:1], out)
    assert absent(halves[:1]) == ["2/2"]
    assert not half.cells()["finished"].all()
    before = len(noted(log))
    serial = study().run(tmp_path / "serial")
    rest = study().run(out)
    assert len(noted(log)) == before + 14 * 3 + 7 * 3
    require_same(rest, serial)
    require_same(unite(halves, out), serial)
    assert absent(halves) == []
    more = study(strengths=[*STRENGTHS, 4.0]).run(out)
    assert len(noted(log)) == before + 14 * 3 + 7 * 3 + 4 * 3
    assert more.cells()["finished"].all()


def test_a_judge_that_rated_one_shard_keeps_its_scores(halves, tmp_path):
    judge_run(halves[1], Rates(tmp_path / "scores.txt", "late"))
    late = Run(halves[1]).answers().query("judge == 'late'")
    run = unite(halves, tmp_path / "all")
    found = run.answers().query("judge == 'late'")
    columns = ["intervention", "strength", "seed", "item", "score"]
    assert found[columns].values.tolist() == late[columns].values.tolist()
    assert list(run["judges"]) == ["reads", "late"]
    judge_run(halves[0], Stricter(tmp_path / "scores.txt", "late"))
    with pytest.raises(RecipeError, match=r"half-2: its judge late is not that of \S+half-1; let"):
        unite(halves, tmp_path / "none")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("statement", "error", "says"),
    [
        (
            "UPDATE readings SET value = value + 0.1 WHERE cell = 1 AND measure = 'mean'",
            CheckpointError,
            "half-2: its mean of base at strength 0, seed 1, has other readings than another of",
        ),
        (
            "UPDATE answers SET reply = 'no' WHERE cell = 3 AND item = 'i0'",
            CheckpointError,
            "half-2: its asked of base at strength 0, seed 1, has other answers than another of",
        ),
        ("UPDATE run SET value = '\"9.9\"' WHERE key = 'version'", CheckpointError,
         "half-2: was measured by personality-vector 9.9, and .*half-1 by 0.1.0; measure both"),
        ("DELETE FROM run WHERE key = 'version'", CheckpointError, "by .*an earlier version, and"),
        ("UPDATE run SET value = '1' WHERE key = 'format'", CheckpointError, "results of format 1"),
        ("UPDATE run SET value = '\"0\"' WHERE key = 'plan'", RecipeError,
         "half-2: has the recipe of .*half-1 but other inputs: the model, or a file"),
        ("DELETE FROM run WHERE key IN ('plan', 'recipe')", RecipeError, "another recipe than"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together_is_refused(study, tmp_path, statement, error, says):
    """Two shards of one seed, so that both measure the base."""
    parts = [sharded(study(seeds=[1]), Shard(i, 2)).run(tmp_path / f"half-{i}") for i in (1, 2)]
    rewritten(parts[1].folder, statement)
    with pytest.raises(error, match=says):
        unite([one.folder for one in parts], tmp_path / "all")
    assert not (tmp_path / "all").exists()


def test_rounding_is_not_a_difference(study, tmp_path):
    parts = [sharded(study(seeds=[1]), Shard(i, 2)).run(tmp_path / f"{i}") for i in (1, 2)]
    rewritten(parts[1].folder, "UPDATE readings SET value = value * 1.000001 WHERE cell = 1")
    assert unite([one.folder for one in parts], tmp_path / "all").cells()["finished"].all()


def test_folders_that_cannot_be_united_are_refused(study, halves, tmp_path):
    other = study(strengths=[9.0]).run(tmp_path / "other").folder
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").write_text("mine")
    for folders, out, error, says in (
        (
            [halves[0], other],
            "all",
            RecipeError,
            "other: is of another recipe than .*half-1, with another value of interventions",
        ),
        (halves, "half-1", OutputExistsError, "half-1: is one of the folders to unite"),
        ([halves[0]] * 2, "all", RecipeError, "name each folder once"),
        ([halves[0], tmp_path / "no"], "all", CheckpointError, "there is no results file"),
        (halves, "theirs", OutputExistsError, "exists but is not a results folder"),
        (halves, "other", RecipeError, "other: is of another recipe than"),
    ):
        with pytest.raises(error, match=says):
            unite(folders, tmp_path / out)
    assert not (tmp_path / "all").exists()
    assert len(Run(other).cells()) == 6 * 3
    assert [file.name for file in (tmp_path / "theirs").iterdir()] == ["thesis.txt"]


def test_a_union_that_fails_leaves_what_was_there(study, halves, tmp_path, monkeypatch):
    out, real = tmp_path / "all", shards._add

    def fail(store, one):
        real(store, one)
        if len(store.rows("SELECT 1 FROM cells")) > 7 * 3:
            raise StorageError("full")

    monkeypatch.setattr(shards, "_add", fail)
    with pytest.raises(StorageError):
        unite(halves, out)
    assert not out.exists()
    before = tables(unite(halves[:1], out))
    with pytest.raises(StorageError):
        unite(halves, out)
    for found, expected in zip(tables(Run(out)), before, strict=True):
        pd.testing.assert_frame_equal(found, expected)
    monkeypatch.undo()
    require_same(unite(halves, out), study().run(tmp_path / "serial"))


def test_a_folder_holds_one_shard_or_all(study, halves):
    with pytest.raises(OutputExistsError, match="half-1: holds shard 1/2 of this recipe; choose"):
        sharded(study(), Shard(2, 2)).run(halves[0])
    whole = study().run(halves[0])
    assert whole["shard"] is None
    assert whole.cells()["finished"].all()
    with pytest.raises(OutputExistsError, match="half-1: holds all of this recipe"):
        sharded(study(), Shard(1, 2)).run(halves[0])


@pytest.mark.parametrize("text", ["", "0/2", "3/2", "1", "1/2/3", "a/b", "-1/2", "1/0", "1 /2"])
def test_a_shard_is_a_number_of_a_number(text):
    with pytest.raises(RecipeError, match=r"^--shard '.*': write i/n, such as 1/8"):
        Shard.parse(text)


def test_more_shards_than_points_are_refused(study):
    with pytest.raises(RecipeError, match="12 points to divide, so use at most 12 shards"):
        sharded(study(), Shard(1, 13))
    assert str(Shard.parse("2/12")) == "2/12"


def test_another_version_does_not_work_beside_this_one(study, log, tmp_path, monkeypatch):
    run = study(measures=[Counted(log)], strengths=[1.0]).run(tmp_path / "run")
    more = study(measures=[Counted(log)], strengths=[2.0])
    says = "run: is being worked on by version 0.1.0 of personality-vector, and this is 9.9; wait"
    with (
        Store.open(run.folder / FILE) as store,
        store.claimed([store.planned()[0].cell._replace(seed=9)]),
    ):
        monkeypatch.setattr("personality_vector.study.claims.version_of_tool", lambda: "9.9")
        with pytest.raises(OutputExistsError, match=says):
            more.run(run.folder)
    assert more.run(run.folder).cells()["finished"].all(), "nobody works there any more"


def test_a_killed_child_has_no_claim_although_it_still_has_a_number(study, log, tmp_path):
    """Nothing waits until the lease has run out."""
    run = study(measures=[Counted(log)], strengths=[1.0]).run(tmp_path / "run")
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(99,))
    child.start()
    with Store.open(run.folder / FILE) as one, Store.open(run.folder / FILE) as other:
        cell = one.planned()[0].cell._replace(seed=9)
        with one.claimed([cell]):
            one.connection.execute("UPDATE claims SET pid = ?", (child.pid,))
            with other.claimed([cell]) as mine:
                assert mine == []
            child.kill()
            os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
            with other.claimed([cell]) as mine:
                assert mine == [cell]


@dataclass(frozen=True)
class Gated(Counted):
    """A number that nobody finds before there is a file."""

    gate: Path | None = None

    def collect(self, subject, seed):
        while self.gate is not None and not self.gate.exists():
            time.sleep(0.02)
        return super().collect(subject, seed)


def gated(base, log, gate=None):
    """Return a study of ten cells; two are those of the base, which two workers begin with."""
    arms = [Shifted("small", 0.5), Shifted("large", 2.0)]
    return pv.study(base, arms, [1.0, 2.0], [Gated(log, gate=gate)], [0, 1])


def partner(out, pid):
    """Return the process that works beside ``pid``, once both have claimed something."""
    found, until = set(), time.monotonic() + 120
    while len(found) < 2:
        assert time.monotonic() < until, "no second process claimed anything"
        time.sleep(0.02)
        with suppress(sqlite3.Error), closing(sqlite3.connect(out / FILE)) as file:
            found = {claimed for (claimed,) in file.execute("SELECT pid FROM claims")}
    return (found - {pid}).pop()


@pytest.mark.slow
def test_the_rest_does_the_work_of_a_killed_helper(base, log, tmp_path):
    serial = gated(base, tmp_path / "other.txt").run(tmp_path / "serial")
    out, gate = tmp_path / "run", tmp_path / "gate"
    out.mkdir()

    def kill():
        try:
            os.kill(partner(out, os.getpid()), signal.SIGKILL)
        finally:
            gate.touch()

    killer = threading.Thread(target=kill)
    killer.start()
    run = gated(base, log, gate).run(out, workers=2)
    killer.join()
    with Store.open(out / FILE) as store:
        assert not store.rows("SELECT 1 FROM claims")
    assert len(noted(log)) == 10, "the helper had not noted its cell"
    pd.testing.assert_frame_equal(run.readings(), serial.readings())


@pytest.mark.slow
def test_helpers_end_with_a_killed_parent_and_a_rerun_ends_with_the_serial_rows(
    base, log, tmp_path
):
    serial = gated(base, tmp_path / "other.txt").run(tmp_path / "serial")
    out, gate = tmp_path / "run", tmp_path / "gate"
    out.mkdir()
    parent = forked(gated(base, log, gate), out, workers=2)
    helper = partner(out, parent.pid)
    parent.kill()
    parent.join()
    assert parent.exitcode == -9
    with suppress(ProcessLookupError):
        while True:
            os.kill(helper, 0)
            time.sleep(0.02)
    gate.touch()
    assert noted(log) == []
    rerun = gated(base, log).run(out)
    assert len(noted(log)) == 10
    pd.testing.assert_frame_equal(rerun.readings(), serial.readings())
