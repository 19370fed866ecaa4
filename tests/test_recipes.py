"""Every YAML of the lab is valid, is listed, and names files that exist."""

from pathlib import Path

import pytest
from pydantic import ConfigDict

from personality_vector.cli.main import run
from personality_vector.data.ideas import CreativityTask
from personality_vector.data.lexicon import LexiconFile
from personality_vector.data.personas import Instrument, Persona
from personality_vector.data.questionnaires import Key
from personality_vector.elicitation.recipe import SteerRecipe
from personality_vector.errors import RecipeError
from personality_vector.finetuning.recipe import TrainRecipe
from personality_vector.lab import FOLDERS, find_recipe, lab_folder, recipes
from personality_vector.measures.instructions import CheckedInstrument
from personality_vector.merging.methods import find_method
from personality_vector.merging.recipe import MergeRecipe
from personality_vector.recipes.reading import read_recipe
from personality_vector.recipes.schema import Recipe
from personality_vector.study.profile.recipe import ProfileRecipe
from personality_vector.study.recipe import ChooseRecipe, CompareRecipe, EvalRecipe, SweepRecipe


class LibraryTask(Recipe):
    """What lm-evaluation-harness reads; its other keys are tested with it."""

    model_config = ConfigDict(extra="ignore")
    task: str
    doc_to_choice: str


KINDS = {
    "training": TrainRecipe,
    "training/big5": TrainRecipe,
    "training/steering": SteerRecipe,
    "training/steering/personas": Persona,
    "merges": MergeRecipe,
    "eval": EvalRecipe,
    "eval/instruments": Instrument,
    "eval/keys": Key,
    "eval/lexicon": LexiconFile,
    "eval/tasks": LibraryTask,
    "eval/tasks/creativity": CreativityTask,
    "eval/sweeps": SweepRecipe,
    "eval/compare": CompareRecipe,
    "eval/choose": ChooseRecipe,
    "eval/profile": ProfileRecipe,
}
LAB = lab_folder()
FILES = sorted(file for folder in FOLDERS for file in (LAB / folder).rglob("*.y*ml"))


def kind_of(file):
    if file.stem == "instructions":
        return CheckedInstrument
    return KINDS[file.parent.relative_to(LAB).as_posix()]


def measured(recipe):
    """Return the files that a measurement reads."""
    one = recipe.measure if isinstance(recipe, ProfileRecipe) else recipe
    specs = getattr(one, "measures", [one])
    found = [getattr(s, key, None) for s in specs for key in ("statements", "instrument", "key")]
    found += [file for s in specs for file in getattr(s, "files", ())]
    found += [file for s in specs for file in getattr(s, "tasks", None) or ()]
    return [source for source in found if isinstance(source, Path)]


def test_there_are_recipes_in_every_folder():
    assert {kind_of(file) for file in FILES} == {*KINDS.values(), CheckedInstrument}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(LAB)))
def test_a_shipped_recipe_is_valid(file):
    recipe = read_recipe(file, kind_of(file))
    if isinstance(recipe, MergeRecipe):
        values = find_method(recipe.method).bind(recipe.options).options
        assert values.items() >= recipe.options.items()


@pytest.mark.parametrize("file", [f for f in FILES if f.stem.startswith("smoke")], ids=str)
def test_what_a_smoke_recipe_reads_is_in_the_repository(file):
    recipe = read_recipe(file, kind_of(file))
    if isinstance(recipe, EvalRecipe | SweepRecipe | ChooseRecipe | ProfileRecipe):
        sources = measured(recipe)
    elif isinstance(recipe, SteerRecipe):
        sides = (recipe.positive, recipe.negative)
        statements = getattr(recipe.judge, "statements", None)
        given = [recipe.persona, statements, *(side and side.source for side in sides)]
        sources = [source for source in given if source is not None]
    else:
        sources = [recipe.data.source] if isinstance(recipe, TrainRecipe) else []
    assert [source for source in sources if not source.is_file()] == []
    assert str(LAB / "personality_vector/demo/model") in recipe.model_dump_json()


@pytest.mark.parametrize("file", [f for f in FILES if "eval" in f.parts], ids=str)
def test_an_evaluation_finds_its_statements_and_instrument(file):
    recipe = read_recipe(file, kind_of(file))
    if hasattr(recipe, "measures") or isinstance(recipe, ChooseRecipe | ProfileRecipe):
        assert [source for source in measured(recipe) if not source.is_file()] == []


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(LAB)))
def test_a_shipped_recipe_begins_by_saying_what_it_does(file):
    assert file.suffix == ".yaml"
    assert file.read_text(encoding="utf-8").startswith("# ")


def test_pvec_recipes_lists_each(capsys):
    assert run(["recipes"]) == 0
    names = [file.relative_to(LAB).with_suffix("").as_posix() for file in FILES]
    assert sorted(capsys.readouterr().out.split()) == sorted(names)


def test_a_shipped_recipe_is_found_by_name_and_a_file_before_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, path in recipes().items():
        assert find_recipe(name) == find_recipe(f"{name}.yaml") == path
    (tmp_path / "merges").mkdir()
    (tmp_path / "merges" / "smoke.yaml").write_text("mine: true\n")
    assert find_recipe("merges/smoke.yaml").resolve() == tmp_path / "merges" / "smoke.yaml"


def test_a_recipe_that_does_not_exist_names_those_like_it():
    with pytest.raises(
        RecipeError, match=r"sweeps/smok: there is no such file or shipped recipe.*like it: eval/c"
    ):
        find_recipe("sweeps/smok")
