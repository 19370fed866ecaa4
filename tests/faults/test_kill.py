"""Killed or failing at any moment, a verb leaves the old output, the new one, or none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

CASES = ["merge, ", "fuse, over", "similarity, over", "eval, over"]


@pytest.mark.slow
def test_disturbed_at_any_moment_nothing_is_lost_or_mixed():
    """A few moments of a few verbs; ``--points 200`` without ``--only`` tries all verbs."""
    script = [sys.executable, "-m", "tests.faults.disturbed"]
    words = ["--points", "12", "--how", "kill", "full disk", "I/O error", "--only", *CASES]
    env = {**os.environ, "PVEC_THREADS": "1", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [*script, *words], capture_output=True, text=True, env=env, check=False, cwd=root
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    assert done.stdout.count("eval, over") == 3
