"""The README tells the truth: its commands for the embedded model run, one after the other."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from personality_vector import lab

ROOT = Path(__file__).parents[1]
MARK = "<!-- run by tests/test_readme.py -->"
_SHORT = ["measures.0.likelihood.limit=10", "measures.1.interview.generation.max_new_tokens=12"]
SMALLER = {
    "training/smoke.yaml": ["sft.epochs=1"],
    "eval/sweeps/smoke.yaml": [*_SHORT, "strengths=[-1.0, 1.0]"],
    "eval/smoke.yaml": _SHORT,
    "eval/choose/smoke.yaml": ["limit=12", "generation={max_new_tokens: 12, samples: 1}"],
    "eval/compare/smoke.yaml": [
        *_SHORT,
        "points=2",
        "interventions.0.strengths=[1.0, 2.0]",
        "interventions.1.strengths=[4.0, 8.0]",
    ],
}
"""What is made smaller in a recipe: here it only has to run, from the first step to the last."""


def commands() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(re.escape(MARK) + r"\n```sh\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line]


def test_every_verb_of_the_tool_is_shown():
    shown = {shlex.split(command)[1] for command in commands()}
    assert shown == {
        "train", "diff", "show", "similarity", "merge", "sweep", "eval", "steer", "compare",
    }  # fmt: skip


@pytest.mark.slow
def test_the_commands_for_the_embedded_model_run_in_order(tmp_path):
    for folder in lab.FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder)
    tool = [sys.executable, "-m", "personality_vector.cli"]
    for command in commands():
        words = shlex.split(command)
        assert words[0] == "pvec"
        for setting in [one for word in words for one in SMALLER.get(word, ())]:
            words += ["--set", setting]
        done = subprocess.run(
            [*tool, *words[1:]], cwd=tmp_path, capture_output=True, text=True, env=os.environ
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip()
    assert (tmp_path / "runs/smoke/compare/report.html").is_file()
    assert (tmp_path / "runs/smoke/merged/MANIFEST.json").is_file()
