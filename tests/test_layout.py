"""The shape of the repository: what lies where, how long it is, and what imports what."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from personality_vector.interventions import spec as interventions
from personality_vector.judges import spec as judges
from personality_vector.lab import FOLDERS
from personality_vector.measures import spec as measures

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "personality_vector"
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES, MOST_FUNCTION_LINES = 400, 50
TREE = re.compile(
    r"^#+ .*(?:tree|layout).*?```\w*\n(.*?)```", re.IGNORECASE | re.DOTALL | re.MULTILINE
)


def name_of(module: Path) -> str:
    return module.relative_to(ROOT).as_posix()


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return the length of a function from ``def`` to its end, without its docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    docstring = function.body[0]
    return lines - ((docstring.end_lineno or 0) - docstring.lineno + 1)


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_lab_holds_no_python_and_a_readme(folder):
    assert list((ROOT / folder).rglob("*.py")) == []
    assert (ROOT / folder / "README.md").is_file()


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_a_module_says_what_it_is_and_is_short(module):
    text = module.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree)
    assert len(text.splitlines()) <= MOST_LINES
    functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {f.name: code_lines(f) for f in functions if code_lines(f) > MOST_FUNCTION_LINES}
    assert long == {}


def test_every_folder_with_python_is_a_package():
    lacking = {m.parent for m in MODULES if not (m.parent / "__init__.py").is_file()}
    assert lacking == set()


@pytest.mark.parametrize("module", [m for m in MODULES if m.stem != "__main__"], ids=name_of)
def test_every_module_can_be_imported_by_itself(module):
    parts = module.relative_to(ROOT).with_suffix("").parts
    importlib.import_module(".".join(part for part in parts if part != "__init__"))


LIGHT = [
    *("traits", "errors", "lab", "manifest", "progress", "report", "study"),
    *sorted(f"recipes.{file.stem}" for file in (PACKAGE / "recipes").glob("[a-z]*.py")),
    *sorted(
        place.partition(":")[0]
        for kinds in (interventions.KINDS, measures.KINDS, judges.KINDS)
        for place in set(kinds.values())
    ),
    *("interventions.spec", "measures.spec", "judges.spec"),
    *("elicitation.recipe", "finetuning.recipe", "merging.recipe"),
    *("study.recipe", "study.profile.recipe", "cli.main"),
]
HEAVY = ("torch", "transformers", "trl", "pandas", "scipy", "sklearn", "matplotlib")


def test_what_a_refused_recipe_and_help_need_imports_no_torch():
    """They must not take seconds to import; the first module that breaks this is named."""
    code = (
        "import sys, importlib\n"
        f"for name in {LIGHT!r}:\n"
        "    importlib.import_module(f'personality_vector.{name}')\n"
        f"    heavy = set({HEAVY!r}) & set(sys.modules)\n"
        "    assert not heavy, f'{name} imports {heavy}'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def paths_in(tree: str) -> list[str]:
    """Return the paths of an annotated tree: names stand between the branch and two spaces."""
    found: list[str] = []
    parents: list[tuple[int, str]] = []
    for line in tree.splitlines():
        match = re.match(r"^([\s│├└─|`+-]*)([\w.]\S*(?: \S+)*)", line)
        if match is None:
            continue
        depth = len(match[1])
        while parents and parents[-1][0] >= depth:
            parents.pop()
        above = "".join(parent for _, parent in parents)
        names = match[2].split(" ")
        found += [above + name for name in names]
        if len(names) == 1 and names[0].endswith("/"):
            parents.append((depth, names[0]))
    return found


def tracked() -> list[str]:
    try:
        done = subprocess.run(
            ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no list of tracked files: {error}")
    return done.stdout.splitlines()


def test_the_tree_in_the_readme_is_the_repository():
    match = TREE.search((ROOT / "README.md").read_text(encoding="utf-8"))
    if match is None:
        pytest.skip("README.md has no fenced tree under a heading with 'tree' or 'layout' yet")
    files = tracked()
    existing = {*files, *(f"{p.as_posix()}/" for file in files for p in Path(file).parents)}
    root = f"{ROOT.name}/"
    named = [
        path.removeprefix("personality-vector/").removeprefix(root) for path in paths_in(match[1])
    ]
    absent = [
        path for path in named if path and path not in existing and f"{path}/" not in existing
    ]
    assert named
    assert [path for path in absent if not any(Path(f).match(path) for f in existing)] == []


def test_a_tree_is_read_with_its_folders():
    tree = "repo/\n├── a.md b.md   both\n└── src/  code\n    ├── one.py\n    └── two/\n"
    expected = ["repo/", "repo/a.md", "repo/b.md", "repo/src/", "repo/src/one.py", "repo/src/two/"]
    assert paths_in(tree) == expected
