"""The READMEs tell the truth: their commands for the embedded model run, one after the other."""

import ast
import re
import shlex
import shutil
from pathlib import Path

import pytest

import personality_vector as pv
from personality_vector import lab
from personality_vector.cli.main import run

ROOT = Path(__file__).parents[1]
MARK = "<!-- run by tests/test_readme.py -->\n```sh\n"
_SHORT = ["measures.0.likelihood.limit=4", "measures.1.interview.generation.max_new_tokens=4"]
SMALLER = {
    "training/smoke.yaml": ["sft.epochs=1"],
    "elicit": ["rollouts.pairs=2", "rollouts.questions=4", "rollouts.samples=1"],
    "eval/sweeps/smoke.yaml": [*_SHORT, "strengths=[-1.0, 1.0]"],
    "eval/smoke.yaml": _SHORT,
    "eval/choose/smoke.yaml": [
        "limit=12",
        "verify=1",
        "shares=[0.1, 0.4]",
        "generation={max_new_tokens: 6, samples: 1}",
    ],
    "training/steering/smoke-persona.yaml": ["rollouts.questions=4", "rollouts.max_new_tokens=8"],
    "eval/compare/smoke.yaml": [
        *_SHORT,
        "points=2",
        "interventions.0.strengths=[1.0, 2.0]",
        "interventions.1.strengths=[4.0, 8.0]",
    ],
}
"""What is made smaller in a recipe: here it only has to run, from the first step to the last."""


PAGES = [
    "README.md",
    "merges/README.md",
    "training/README.md",
    "training/data/README.md",
    "training/steering/README.md",
    "eval/README.md",
    "eval/sweeps/README.md",
    "eval/compare/README.md",
]


def blocks(kind: str, page: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{kind}\n(.*?)```", text, flags=re.DOTALL)


def commands() -> list[str]:
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES]
    marked = [block.partition("```")[0] for text in texts for block in text.split(MARK)[1:]]
    return [line for block in marked for line in block.splitlines() if line]


def test_every_verb_of_the_three_uses_is_run():
    shown = {shlex.split(command)[1] for command in commands()}
    made = {"elicit", "train", "diff", "merge", "steer"}
    assert shown == made | {"show", "similarity", "sweep", "eval", "compare"}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_is_short(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    if page == "README.md":
        assert len(text.split()) <= 1400
    prose = "\n".join(line for line in text.splitlines() if not line.startswith("|"))
    assert len(prose.split()) <= 1200


@pytest.mark.parametrize("page", PAGES)
def test_a_link_leads_somewhere(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", text)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_python_of_a_page_parses_and_names_what_there_is(page):
    for block in blocks("python", page):
        tree = ast.parse(block)
        used = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pv"
        }
        assert [name for name in used if not hasattr(pv, name)] == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_commands_for_the_embedded_model_run_in_order(tmp_path, monkeypatch, capsys):
    """In one process: to import torch again for each of them would take most of the time."""
    for folder in lab.FOLDERS:
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.chdir(tmp_path)
    for command in commands():
        words = shlex.split(command)
        assert words[0] == "pvec"
        for setting in [one for word in words for one in SMALLER.get(word, ())]:
            words += ["--set", setting]
        assert run(words[1:]) == 0, f"{command}\n{capsys.readouterr()}"
        assert capsys.readouterr().out.strip()
    assert Path("runs/smoke/compare/report.html").is_file()
    assert Path("runs/smoke/merged/MANIFEST.json").is_file()
