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
        done = subprocess.run(
            [*tool, *words[1:]], cwd=tmp_path, capture_output=True, text=True, env=os.environ
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        assert done.stdout.strip()
    assert (tmp_path / "runs/smoke/compare/report.html").is_file()
    assert (tmp_path / "runs/smoke/merged/MANIFEST.json").is_file()
