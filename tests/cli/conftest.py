"""The command line in this process, and a small lab for it to work in."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from personality_vector.cli.main import run
from personality_vector.delta import Delta

SAID = {"high": ("I love parties", "I talk a lot"), "low": ("I am quiet", "I like it alone")}
TRAITS = ["extraversion", "openness"]
ASKED = {"traits": TRAITS, "statements": "statements.jsonl"}


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed, which must be JSON and nothing else."""
        return json.loads(self.out)


@pytest.fixture
def pvec(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Return ``pvec(*words)``: run the command line here."""

    def call(*words: object) -> Ended:
        capsys.readouterr()
        code = run([str(word) for word in words])
        return Ended(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, pico: Any, pico_tuned: Any) -> SimpleNamespace:
    """Return paths: two models, two saved deltas, and a recipe of every verb."""
    tuned = [pico_tuned("llama", seed=seed) for seed in (0, 1)]
    return make_lab(tmp_path_factory.mktemp("lab"), pico("llama"), tuned)


def make_lab(folder: Path, model: Path, fine_tunes: Sequence[Path]) -> SimpleNamespace:
    """Return the paths of a lab in ``folder``."""
    base, tuned = str(model), str(fine_tunes[0])
    rows = [
        {"trait": trait, "level": level, "statement": f"{text} {trait} {part}", "part": part}
        for trait in TRAITS
        for level, texts in SAID.items()
        for text in texts
        for part in ("train", "held_out")
    ]
    (folder / "statements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    judge = {"classifier": {"statements": "statements.jsonl", "neutral": None}}
    interview = {"traits": TRAITS, "question": "Who?", "judges": [judge]}
    interview |= {"generation": {"max_new_tokens": 4}}
    measures = [{"likelihood": ASKED}, {"interview": interview}, "divergence", {"guards": ASKED}]
    common = {"device": "cpu", "measures": measures}
    data = {"source": "statements.jsonl"}
    pole = "extraversion:high"
    weights = {"label": "weights", "tuned": tuned}
    recipes: dict[str, Any] = {
        "train": {"base": base, "pole": pole, "data": data, "sft": {"epochs": 1}, "device": "cpu"},
        "merge": {"base": base, "terms": [{"tuned": tuned, "alpha": 0.5}]},
        "extract": {"model": base, "pole": pole, "positive": data, "negative": data},
        "eval": {"model": base, **common},
        "judge": judge,
        "sweep": {"base": base, "interventions": [weights], "strengths": [0.5, 1.0], **common},
    }
    recipes["profile"] = {
        "base": base,
        "terms": [{"tuned": tuned}],
        "target": {"extraversion": 0.1},
        "measure": {"likelihood": ASKED},
        "device": "cpu",
    }
    recipes["compare"] = {**recipes["sweep"], "pole": pole, "points": 1}
    paths = {}
    for name, content in recipes.items():
        paths[name] = folder / f"{name}.yaml"
        paths[name].write_text(json.dumps(content))  # JSON is YAML
    deltas = [
        Delta.between(base, one, label=f"seed {seed}").save(folder / f"delta-{seed}")
        for seed, one in enumerate(fine_tunes)
    ]
    return SimpleNamespace(folder=folder, base=base, tuned=tuned, deltas=deltas, **paths)
