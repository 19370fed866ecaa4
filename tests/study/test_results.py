import json
import math
import random
import sqlite3
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from personality_vector.errors import (
    CheckpointError,
    DataError,
    LockedError,
    NonFiniteError,
    OutputExistsError,
    StorageError,
)
from personality_vector.study.store import Answer, Measure, Results, sqlite

SPEC = {"base": "demo", "seed": 1, "measure": {"traits": ["openness"], "limit": None}}
UNSCORED = Answer("who", "openness", 1, "Who?", "", None, "the answer is empty")
ANSWERS = [Answer("who", "openness", 0, "Who?", "I dream", 4.5), UNSCORED]
MEASURES = [Measure("openness", "probe", 0.25, 0.1, 30), Measure("", "kl_to_base", 0.0)]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "results.sqlite"


@pytest.fixture
def results(path):
    with Results.open(path, SPEC) as opened:
        yield opened


def contents(results):
    return {table: results.frame(table).to_csv() for table in ("cells", "answers", "measures")}


def test_what_is_written_is_read_after_closing(path):
    with Results.open(path, SPEC) as results:
        assert not results.finished("ext", 0.5)
        assert results.write_cell("ext", 0.5, ANSWERS, MEASURES, 1.5)
        before = contents(results)
    with Results.open(path, SPEC) as results:
        assert results.finished("ext", 0.5)
        assert not results.finished("ext", -0.5)
        assert not results.finished("agr", 0.5)
        assert contents(results) == before
        assert results.frame("answers").reply.tolist() == ["I dream", ""]
        assert results.frame("measures").value.tolist() == [0.0, 0.25]
    with Results.reopen(path) as results:
        assert results.spec == SPEC


def test_a_finished_cell_is_not_written_twice(results):
    results.write_cell("ext", 1.0, ANSWERS, MEASURES, 1.0)
    before = contents(results)
    assert not results.write_cell("ext", 1.0, [], [Measure("", "kl_to_base", 9.0)], 2.0)
    assert contents(results) == before


def test_minus_zero_is_the_cell_of_zero(results):
    results.write_cell("ext", -0.0, [], MEASURES, 1.0)
    assert results.finished("ext", 0.0)
    assert not results.write_cell("ext", 0.0, [], MEASURES, 1.0)


def test_the_file_is_durable(results):
    pragmas = {
        name: results._connection.execute(f"PRAGMA {name}").fetchone()[0]
        for name in ("journal_mode", "synchronous")
    }
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}  # 2 is FULL


KILLED = """
import os, sys, pathlib
from personality_vector.study.store import Measure, Results, store
results = Results.open(pathlib.Path(sys.argv[1]), {spec})
results.write_cell("ext", 1.0, [], [Measure("", "m", 1.0)], 1.0)
insertion = store.insertion
store.insertion = lambda table: os._exit(9) if table == "measures" else insertion(table)
results.write_cell("ext", 2.0, [], [Measure("", "m", 2.0)], 1.0)
"""


def test_a_cell_that_was_being_written_when_the_process_died_leaves_no_row(path):
    script = KILLED.format(spec=SPEC)
    died = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert died.returncode == 9
    with Results.open(path, SPEC) as results:
        assert results.finished("ext", 1.0)
        assert not results.finished("ext", 2.0)
        assert results.frame("measures").value.tolist() == [1.0]
        assert results.write_cell("ext", 2.0, [], [Measure("", "m", 2.0)], 1.0)


def test_an_exception_before_the_commit_leaves_no_row_and_the_file_usable(results, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("personality_vector.study.store.store.insertion", interrupted)
        with pytest.raises(KeyboardInterrupt):
            results.write_cell("ext", 1.0, ANSWERS, MEASURES, 1.0)
    assert not results.finished("ext", 1.0)
    assert results.write_cell("ext", 1.0, ANSWERS, MEASURES, 1.0)


def test_two_rows_with_one_key_are_refused_and_nothing_is_written(results):
    with pytest.raises(DataError, match="same key"):
        results.write_cell("ext", 1.0, [*ANSWERS, ANSWERS[0]], MEASURES, 1.0)
    assert not results.finished("ext", 1.0)
    assert len(results.frame("answers")) == 0


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused_and_nothing_is_written(results, number):
    cells = [
        (1.0, [Answer("i", "t", 0, "q", "r", number)], [], 1.0, "score"),
        (1.0, [], [Measure("openness", "probe", number)], 1.0, "openness value"),
        (1.0, [], [Measure("openness", "probe", 1.0, number)], 1.0, "standard_error"),
        (number, [], [], 1.0, "strength"),
        (1.0, [], [], number, "time"),
    ]
    for *cell, culprit in cells:
        with pytest.raises(NonFiniteError, match=culprit):
            results.write_cell("ext", *cell)
    assert contents(results) == {
        table: results.frame(table).iloc[:0].to_csv() for table in ("cells", "answers", "measures")
    }


def test_numbers_of_numpy_are_numbers(results):
    measure = Measure("", "m", np.float64(0.5), np.float64(0.25), 3)
    results.write_cell("ext", np.float64(1.0), [], [measure], 1.0)
    assert results.frame("measures")[["value", "standard_error"]].values.tolist() == [[0.5, 0.25]]


def test_the_unscored_stay_unscored(results, tmp_path):
    results.write_cell(
        "ext", 1.0, [UNSCORED], [Measure("openness", "judge", None, n=0, unscored=1)], 1.0
    )
    answers, measures = results.frame("answers"), results.frame("measures")
    assert answers.score.isna().all()
    assert measures.value.isna().all()
    assert measures.unscored.tolist() == [1]
    assert answers.score.dtype == measures.value.dtype == "float64"
    results.export(tmp_path)
    assert pd.read_csv(tmp_path / "answers.csv").score.isna().all()
    assert pd.read_parquet(tmp_path / "measures.parquet").value.isna().all()


def test_the_order_of_writing_does_not_show(tmp_path):
    cells = [(label, strength) for label in ("b", "a") for strength in (2.0, -1.0, 0.5, 10.0)]
    exports = []
    for seed in (1, 2):
        order = random.Random(seed).sample(cells, len(cells))
        with Results.open(tmp_path / f"{seed}.sqlite", SPEC) as results:
            for label, strength in order:
                results.write_cell(label, strength, ANSWERS[::-1], MEASURES, 1.0)
            exports.append([file.read_bytes() for file in results.export(tmp_path / str(seed))])
            strengths = results.frame("measures").strength.tolist()
    assert exports[0] == exports[1]
    assert strengths[:8:2] == [-1.0, 0.5, 2.0, 10.0]


@pytest.mark.parametrize("opening", ["=", "+", "-", "@", "\t", "\r"])
def test_a_spreadsheet_executes_no_reply(results, tmp_path, opening):
    reply = f'{opening}HYPERLINK("http://example.org")'
    results.write_cell("ext", -1.0, [Answer("i", "t", 0, "q", reply, 2.0)], [], 1.0)
    results.export(tmp_path)
    table = pd.read_csv(tmp_path / "answers.csv", lineterminator="\n")
    assert table.reply[0] == f"'{reply}"
    assert table.strength[0] == -1.0  # numbers keep their sign
    assert pd.read_parquet(tmp_path / "answers.parquet").reply[0] == reply


def test_an_export_replaces_an_older_one_and_leaves_nothing_else(results, tmp_path):
    out = tmp_path / "out"
    results.export(out)
    results.write_cell("ext", 1.0, ANSWERS, MEASURES, 1.0)
    written = results.export(out)
    assert sorted(out.iterdir()) == sorted(written)
    assert len(pd.read_csv(out / "measures.csv")) == 2


@pytest.mark.parametrize(
    ("other", "field"),
    [
        (SPEC | {"seed": 2}, "seed"),
        (SPEC | {"extra": 1}, "extra"),
        ({"base": "demo", "seed": 1}, "measure"),
        (SPEC | {"measure": {"traits": ["openness"], "limit": 3}}, "measure"),
    ],
)
def test_another_spec_is_refused_by_the_field_that_differs(path, other, field):
    Results.open(path, SPEC).close()
    with pytest.raises(OutputExistsError, match=f"another run: {field} differ"):
        Results.open(path, other)


def test_the_order_of_keys_in_the_spec_does_not_matter(path):
    Results.open(path, SPEC).close()
    reversed_spec = {name: SPEC[name] for name in reversed(SPEC)}
    with Results.open(path, reversed_spec) as results:
        run = results.frame("run").set_index("key").value
    assert json.loads(run["spec"]) == SPEC
    assert len(run["spec_sha256"]) == 64


def test_without_resuming_an_existing_file_is_refused_and_untouched(path):
    Results.open(path, SPEC).close()
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match="exists"):
        Results.open(path, SPEC, resume=False)
    assert path.read_bytes() == before


def test_a_spec_with_no_number_is_refused_before_a_file_is_made(path):
    with pytest.raises(NonFiniteError, match="spec"):
        Results.open(path, {"alpha": math.nan})
    assert not path.exists()


def damaged_page(path):
    with Results.open(path, SPEC) as results:
        for strength in range(60):
            results.write_cell("ext", float(strength), ANSWERS, MEASURES, 1.0)
    content = bytearray(path.read_bytes())
    content[8192:12288] = b"\xa5" * 4096
    path.write_bytes(content)


def garbage(path):
    path.parent.mkdir()
    path.write_bytes(b"these are not the results" * 200)


def foreign(path):
    path.parent.mkdir()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE run (a)")
    other.close()


def altered_spec(path):
    Results.open(path, SPEC).close()
    with sqlite3.connect(path) as other:
        other.execute("UPDATE run SET value = '{}' WHERE key = 'spec'")
    other.close()


@pytest.mark.parametrize("damage", [damaged_page, garbage, foreign, altered_spec])
def test_a_damaged_or_foreign_file_is_named(path, damage):
    damage(path)
    with pytest.raises(CheckpointError) as refusal:
        Results.open(path, SPEC)
    assert str(path) in str(refusal.value)


def test_reopening_what_is_not_there_is_refused(path):
    with pytest.raises(CheckpointError, match="no results file"):
        Results.reopen(path)
    assert not path.exists()


def test_a_file_that_another_process_is_writing_is_said_to_be_locked(path, monkeypatch):
    monkeypatch.setattr(sqlite, "_SECONDS_TO_WAIT", 0.05)
    with Results.open(path, SPEC) as results:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            with pytest.raises(LockedError, match=r"results\.sqlite"):
                results.write_cell("ext", 1.0, [], [], 1.0)
        finally:
            other.close()
        assert results.write_cell("ext", 1.0, [], [], 1.0)


def test_a_folder_that_cannot_be_made_is_a_matter_of_storage(tmp_path):
    (tmp_path / "run").write_text("a file")
    with pytest.raises(StorageError, match="run"):
        Results.open(tmp_path / "run" / "results.sqlite", SPEC)


def test_an_unknown_table_is_refused(results):
    with pytest.raises((DataError, TypeError), match="table"):
        results.frame("sqlite_master")
