"""``--workers`` and ``--shard``, and a report of several folders."""

import json
import sqlite3
from contextlib import closing

import pandas as pd
import pytest

from personality_vector.manifest import MANIFEST
from personality_vector.study.run import Run
from personality_vector.study.store import FILE

pytestmark = pytest.mark.usefixtures("no_pictures")

LIKELIHOOD = "measures=[{likelihood: {traits: [extraversion], statements: statements.jsonl}}]"


@pytest.fixture
def sweep(pvec, lab, tmp_path, monkeypatch):
    """Return ``sweep(*words)``: one measure of four points, in ``tmp_path``."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "statements.jsonl").write_text((lab.folder / "statements.jsonl").read_text())
    (tmp_path / "sweep.yaml").write_text(lab.sweep.read_text())
    given = ["--set", LIKELIHOOD, "--set", "strengths=[0.5, 1.0, 1.5]"]
    return lambda *words: pvec("sweep", "sweep.yaml", *given, *words)


def test_two_shards_are_united_by_a_report(sweep, pvec, tmp_path):
    """Without --out each has a folder of its own."""
    folders = [f"runs/{tmp_path.name}-sweep-{index}-of-2" for index in (1, 2)]
    for index, folder in enumerate(folders, 1):
        assert sweep("--shard", f"{index}/2", "--quiet").code == 0
        assert json.loads((tmp_path / folder / MANIFEST).read_text())["shard"] == [index, 2]
        assert f"cells, by shard {index} of 2," in (tmp_path / folder / "report.html").read_text()
    one = pvec("report", folders[0], "--out", "all", "--json")
    assert (one.code, one.json["finished"], one.json["absent"]) == (0, 3, ["2/2"])
    assert one.err == (
        "all: 1 of 4 cells are missing (no folder is shard 2/2); unite them too, or measure them "
        "with pvec sweep RECIPE --out all\n"
    )
    both = pvec("report", *folders, "--out", "all")
    assert (both.code, both.err, both.out) == (0, "", "report: all/report.html\n")
    manifest = json.loads((tmp_path / "all" / MANIFEST).read_text())
    assert manifest["kind"] == "sweep"
    assert "shard" not in manifest
    assert sweep("--out", "serial", "--workers", 1).code == 0
    pd.testing.assert_frame_equal(
        Run(tmp_path / "all").readings(), Run(tmp_path / "serial").readings()
    )
    assert pvec("show", "all", "--json").json["kind"] == "sweep"
    assert pvec("report", "all").code == 0


def test_a_comparison_ends_where_its_shards_are_united(pvec, lab, tmp_path, monkeypatch):
    monkeypatch.chdir(lab.folder)
    arms = "interventions=[{label: w, tuned: %s}, {label: p, prompt: 'extraversion:high'}]"
    points = ["--set", LIKELIHOOD, "--set", "strengths=[1, 2]"]
    words = ["compare", lab.compare, *points, "--set", arms % lab.tuned]
    parts = [tmp_path / name for name in ("a", "b")]
    for index, part in enumerate(parts, 1):
        assert pvec(*words, "--shard", f"{index}/2", "--out", part).code == 0
    assert pvec("report", *parts, "--out", tmp_path / "all").code == 0
    assert Run(tmp_path / "all")["pole"] is None
    for folder in ("all", "serial"):
        assert pvec(*words, "--out", tmp_path / folder).code == 0
    pd.testing.assert_frame_equal(
        Run(tmp_path / "all").readings(), Run(tmp_path / "serial").readings()
    )
    assert Run(tmp_path / "all")["matches"] == Run(tmp_path / "serial")["matches"]


def test_bad_shards_and_folders_are_refused_in_one_sentence(sweep, pvec, tmp_path):
    assert sweep("--shard", "1/2", "--out", "a").code == 0
    assert sweep("--shard", "2/2", "--out", "b").code == 0
    assert sweep("--set", "seeds=[7]", "--out", "other").code == 0
    with closing(sqlite3.connect(tmp_path / "b" / FILE)) as file:
        file.execute("UPDATE run SET value = '\"9.9\"' WHERE key = 'version'")
        file.commit()
    for ended, says in (
        (sweep("--shard", "3/2"), "--shard '3/2': write i/n, such as 1/8"),
        (sweep("--shard", "1/9"), "has 3 points to divide, so use at most 3 shards"),
        (sweep("--shard", "2/2", "--out", "a"), "a: holds shard 1/2 of this recipe"),
        (
            pvec("report", "a", "b"),
            "b: is not a comparison, so it has no cross-talk",
        ),
        (pvec("report", "a", "b", "--out", "all"), "was measured by personality-vector 9.9, and"),
        (pvec("report", "a", "other", "--out", "all"), "with another value of seeds"),
        (pvec("report", "a", "no", "--out", "all"), "there is no results file"),
    ):
        assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
        assert ended.err.startswith("error: ")
        assert says in ended.err
    assert not (tmp_path / "all").exists()
    assert not (tmp_path / "runs").exists()
    assert sweep("--workers", 0).code == 2


def test_a_plan_says_what_a_shard_takes(sweep, tmp_path):
    plans = [sweep("--dry-run", "--json", *words).json for words in ([], ["--shard", "2/3"])]
    assert [plan["cells"] for plan in plans] == [4, 2]
    assert [plan["counted"]["points"] for plan in plans] == [4, 2]
    assert plans[1]["out"].endswith("-2-of-3")
    assert plans[0]["counted"]["tokens_read"] == 2 * plans[1]["counted"]["tokens_read"]
    assert all(plan["estimated"]["seconds"] > 0 for plan in plans)
    assert not (tmp_path / "runs").exists()
