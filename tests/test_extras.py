"""Every extra has a floor, and all of them resolve together under constraints.txt."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_every_package_of_an_extra_has_a_floor(extra):
    assert [
        one for one in EXTRAS[extra] if not re.fullmatch(r"[\w-]+(\[\w+\])?>=[\d.]+", one)
    ] == []


def _pip(*words):
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.skipif("PVEC_EXTRAS" not in os.environ, reason="takes a minute: `make extras` runs it")
def test_all_extras_resolve_together_under_the_constraints():
    if _pip("index", "versions", "packaging").returncode:
        pytest.skip("no registry of packages answers")
    wanted = {one for extra in EXTRAS.values() for one in extra} | set(PROJECT["dependencies"])
    words = ["install", "--dry-run", "--ignore-installed", "--quiet"]
    done = _pip(*words, "-c", str(ROOT / "constraints.txt"), *sorted(wanted))
    assert done.returncode == 0, done.stderr
