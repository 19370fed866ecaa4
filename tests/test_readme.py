"""The READMEs tell the truth: their commands for the embedded model run, one after the other."""

import ast
import re
import shlex
import shutil
from pathlib import Path

import pytest

import personality_vector as pv
from personality_vector import lab
from personality_vector.cli import main

ROOT = Path(__file__).parents[1]
MARK = "<!-- run by tests/test_readme.py -->\n```sh\n"
STATEMENTS = "training/data/big5_statements.jsonl"
_JUDGE = "{classifier: {statements: few.jsonl, neutral: null}}"
_ASKED = [
    *("measures.0.likelihood.statements=few.jsonl", "measures.0.likelihood.limit=2"),
    f"measures.1.interview.judges=[{_JUDGE}]",
    "measures.1.interview.generation={max_new_tokens: 4, samples: 1}",
    "measures.3.guards.statements=few.jsonl",
]
SMALLER = {
    "training/smoke": ["data.limit=16", "sft.epochs=1"],
    "training/steering/smoke": ["positive.limit=20", "negative.limit=20"],
    "eval/sweeps/smoke": [
        *(*_ASKED, "measures.1.interview.instrument=null"),
        "measures.1.interview.generation.batch_size=3",
        "interventions.1.strengths=[1.0]",
    ],
    "eval/compare/smoke": [
        *(*_ASKED, "points=1", "measures.0.likelihood.traits=[extraversion, neuroticism]"),
        "measures.1.interview.traits=[extraversion]",
        "interventions.0.strengths=[1.0, 2.0]",
        "interventions.1.strengths=[4.0, 8.0]",
        "interventions.2.strengths=[1.0]",
    ],
    "eval/smoke": _ASKED,
    "elicit": [
        *("rollouts.pairs=2", "rollouts.questions=4", "rollouts.samples=1"),
        f"judge={_JUDGE}",
    ],
    "training/steering/smoke-persona": [
        *("rollouts.questions=4", "rollouts.max_new_tokens=8"),
        f"judge={_JUDGE}",
    ],
    "eval/choose/smoke": [
        *("limit=12", "verify=1", "shares=[0.1, 0.4]"),
        "generation={max_new_tokens: 6, samples: 1}",
    ],
}
"""What is made smaller in a recipe: here it only has to run, from the first step to the last.

One arm of the sweep keeps all strengths, and a batch has room for some of them, but not for all.
"""


PAGES = [
    "README.md",
    "merges/README.md",
    "training/README.md",
    "training/data/README.md",
    "training/steering/README.md",
    "eval/README.md",
    "eval/sweeps/README.md",
    "eval/compare/README.md",
    "eval/instruments/README.md",
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


def lines_of(target: str) -> list[str]:
    """Return the commands of a target of the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^{target}:.*\n((?:\t.+\n)+)", text, flags=re.MULTILINE)
    return [line.strip().removeprefix("$(BIN)/") for line in found.splitlines()]


@pytest.fixture
def smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in a new folder, where every recipe that is called by its name is made smaller."""
    monkeypatch.chdir(tmp_path)
    statements = (ROOT / STATEMENTS).read_text(encoding="utf-8").splitlines(keepends=True)
    Path("few.jsonl").write_text("".join(statements[::25]), encoding="utf-8")
    whole = main.app

    def app(words: list[str], **how: bool) -> object:
        settings = [one for word in words for one in SMALLER.get(word.removesuffix(".yaml"), ())]
        return whole([*words, *(f"--set={one}" for one in settings)], **how)

    monkeypatch.setattr(main, "app", app)


def require_done(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Carry out a command in this process: to import torch again would take most of the time."""
    program, *words = shlex.split(command)
    assert program == "pvec"
    assert main.run(words) == 0, f"{command}\n{capsys.readouterr()}"
    assert capsys.readouterr().out.strip()


@pytest.mark.slow
@pytest.mark.usefixtures("smaller")
@pytest.mark.filterwarnings("ignore")
def test_the_commands_for_the_embedded_model_run_in_order(capsys):
    for folder in lab.FOLDERS:
        shutil.copytree(ROOT / folder, folder)
    for command in commands():
        require_done(command, capsys)
    assert Path("runs/smoke/compare/report.html").is_file()
    assert Path("runs/smoke/merged/MANIFEST.json").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("smaller", "no_pictures")
@pytest.mark.filterwarnings("ignore")
def test_make_demo_does_the_whole_job(capsys):
    (command,) = lines_of("demo")
    require_done(command, capsys)
    assert Path("runs/demo/sweep/report.html").is_file()
    assert Path("runs/demo/compare/report.html").is_file()
