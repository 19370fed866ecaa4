"""A good merge recipe, and the command line that carries it out in this process."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from personality_vector.cli.main import run


@pytest.fixture
def bench(pico: Any, pico_tuned: Any, tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """Return ``(folder, recipe)``: a good merge recipe, with ``tuned/`` for a test to damage."""
    shutil.copytree(pico_tuned("llama"), tmp_path / "tuned")
    recipe = {
        "base": str(pico("llama")),
        "terms": [{"tuned": str(tmp_path / "tuned"), "alpha": 0.5}],
    }
    return tmp_path, recipe


@pytest.fixture
def merge(
    bench: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Return ``merge(*words)``: write the recipe, merge by it and return exit code and stderr."""
    folder, recipe = bench

    def call(*words: str) -> tuple[int, str]:
        text = recipe if isinstance(recipe, str) else yaml.safe_dump(recipe, allow_unicode=True)
        (folder / "mine.yaml").write_text(text)
        capsys.readouterr()
        code = run(["merge", str(folder / "mine.yaml"), "--out", str(folder / "out"), *words])
        printed = capsys.readouterr()
        assert code == 0 or printed.out == ""
        return code, printed.err

    return call
