"""Killed or failing at any moment, a merge leaves the old output, the new one, or none."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytestmark = pytest.mark.slow
OVER = pytest.mark.parametrize("over", [False, True], ids=["fresh", "over an old output"])


@pytest.fixture
def place(tmp_path):
    """A folder in memory, where there is one: a disk would be flushed thousands of times."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture
def experiment(place):
    """Return ``experiment(name, over)``: what became of each disturbed merge."""
    drawn = torch.randn(2, 7_000, generator=torch.Generator().manual_seed(0))
    for name, flat in {"base": drawn[0], "tuned": drawn[0] + 0.01 * drawn[1]}.items():
        (place / name).mkdir()
        one, two = flat[:4_000].reshape(50, 80).clone(), flat[4_000:].clone()
        save_file({"one": one, "two": two}, place / name / "model.safetensors")
        (place / name / "config.json").write_text('{"model_type": "toy"}')
        (place / name / "tokenizer.json").write_text("{}")
    recipe = {
        "base": str(place / "base"),
        "terms": [{"tuned": str(place / "tuned"), "alpha": 1.0}],
        "method": "ties",
        "output": {"shard_size": "16KB"},
    }
    (place / "recipe.yaml").write_text(json.dumps(recipe))

    def run(name, over):
        script = Path(__file__).with_name("disturbed.py")
        words = [sys.executable, script, place, name, "over" if over else "fresh"]
        env = {**os.environ, "PVEC_THREADS": "1", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, capture_output=True, text=True, env=env, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def require_whole(rows, over):
    """Never a mixture, and merging again does what was asked, as if nothing had happened."""
    for number, row in enumerate(rows, 1):
        assert row["state"] in (("old", "new") if over else ("absent", "new")), (number, row)
        assert row["impostors"] == [], (number, row)
        assert row["again"] == [0, "", "new", 1], (number, row)


@OVER
def test_killed_at_any_operation_a_merge_is_old_new_or_absent(experiment, over):
    rows = experiment("kill", over)
    assert len(rows) > 60
    assert {row["ended"] for row in rows} == {-9}
    require_whole(rows, over)
    assert all(row["left"] in ([], [".out.partial"]) for row in rows)


@OVER
def test_killed_at_random_a_merge_is_old_new_or_absent(experiment, over):
    rows = experiment("random", over)
    require_whole(rows, over)
    assert sum(row["ended"] == -9 for row in rows) == 20


@OVER
@pytest.mark.parametrize("how", ["full disk", "I/O error"])
def test_a_disk_that_fails_at_any_operation_publishes_nothing(experiment, over, how):
    rows = experiment(how, over)
    require_whole(rows, over)
    assert all(row["left"] == [] for row in rows)
    # A folder that cannot be made but is there, a fast way to copy with a slow one behind it.
    harmless = [row for row in rows if row["ended"] == 0]
    assert all(row["state"] == "new" and row["said"] == "" for row in harmless)
    refused = [row for row in rows if row["ended"] != 0]
    assert len(refused) > 15
    for number, row in enumerate(refused, 1):
        assert row["ended"] == 4, (number, row)
        assert row["said"].startswith("error: "), (number, row)
        assert row["said"].count("\n") == 1, (number, row)
    # The last operation flushes the parent folder, after the output was published.
    unpublished = refused[:-1] if how == "I/O error" else refused
    assert {row["state"] for row in unpublished} == {"old" if over else "absent"}
