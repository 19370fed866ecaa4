"""``--set`` and paths: what a value means depends on where it was written."""

from pathlib import Path

import pytest

from personality_vector.errors import RecipeError
from personality_vector.finetuning.recipe import TrainRecipe
from personality_vector.lab import builtin, lab_folder
from personality_vector.merging.recipe import MergeRecipe
from personality_vector.recipes.reading import override, read_recipe


@pytest.fixture
def file(tmp_path, monkeypatch):
    """Return a merge recipe in ``lab/``, while we work in ``elsewhere/``."""
    for folder in ("lab", "elsewhere"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    file = tmp_path / "lab" / "merge.yaml"
    file.write_text("base: ../models/b\nterms:\n  - {delta: d, alpha: 1}\n  - {delta: e, alpha: 2}")
    return file


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("a=1", {"a": 1, "list": [{"x": 1}, {"x": 2}]}),
        ("a=", {"a": None, "list": [{"x": 1}, {"x": 2}]}),
        ("a=b=c", {"a": "b=c", "list": [{"x": 1}, {"x": 2}]}),
        (
            "new.deep.key=[1, two]",
            {"list": [{"x": 1}, {"x": 2}], "new": {"deep": {"key": [1, "two"]}}},
        ),
        ("list.1.x=0.5", {"list": [{"x": 1}, {"x": 0.5}]}),
        ("list.0={y: 3}", {"list": [{"y": 3}, {"x": 2}]}),
        ("list=[]", {"list": []}),
    ],
)
def test_a_setting_changes_the_value_at_its_path_and_nothing_else(setting, expected):
    data = {"list": [{"x": 1}, {"x": 2}]}
    override(data, setting)
    assert data == expected


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("alpha", "write key.path=value"),
        ("=1", "write key.path=value"),
        ("list.2.x=1", "'2' is not one of the 2 elements"),
        ("list.-1.x=1", "'-1' is not one of the 2 elements"),
        ("list.x=1", "'x' is not one of the 2 elements"),
        ("text.x=1", "'x' would lie inside a text"),
        ("number.x.y=1", "'x' would lie inside a int"),
        ("text=[", "is not a YAML value"),
        ("text=!!python/name:os.system", "is not a YAML value"),
    ],
)
def test_a_setting_that_leads_nowhere_is_refused(setting, message):
    with pytest.raises(RecipeError) as caught:
        override({"list": [{}, {}], "text": "t", "number": 3}, setting)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_apply_in_order_and_are_validated_like_the_file(file):
    recipe = read_recipe(file, MergeRecipe, ["terms.1.alpha=-0.5", "seed=7", "seed=8"])
    assert [term.alpha for term in recipe.terms] == [1.0, -0.5]
    assert recipe.seed == 8
    with pytest.raises(RecipeError, match=r"merge\.yaml: unknown key 'terms\.1\.alfa'; did you me"):
        read_recipe(file, MergeRecipe, ["terms.1.alfa=1"])


def test_a_path_in_the_file_counts_from_its_folder(file, tmp_path):
    recipe = read_recipe(file, MergeRecipe)
    assert recipe.base == str(tmp_path / "models" / "b")
    assert recipe.terms[0].delta == tmp_path / "lab" / "d"


def test_a_path_on_the_command_line_counts_from_where_we_are(file):
    recipe = read_recipe(file, MergeRecipe, ["base=./here", "terms.0={delta: x, alpha: 1}"])
    assert recipe.base == str(Path.cwd() / "here")
    assert recipe.terms[0].delta == Path.cwd() / "x"
    assert recipe.terms[1].delta == file.parent / "e"


def test_absolute_paths_and_the_home_directory_are_kept(file, tmp_path):
    recipe = read_recipe(file, MergeRecipe, [f"base={tmp_path}", "terms.0.delta=~/vector"])
    assert recipe.base == str(tmp_path)
    assert recipe.terms[0].delta == Path.home() / "vector"


@pytest.mark.parametrize("setting", [[], ["base=builtin:demo"]])
def test_builtin_leads_into_the_package_from_anywhere(tmp_path, setting):
    file = tmp_path / "t.yaml"
    file.write_text(
        "base: builtin:demo\npole: openness:high\n"
        "data: {source: 'builtin:training/data/big5_statements.jsonl'}\n"
    )
    recipe = read_recipe(file, TrainRecipe, setting)
    assert recipe.base == str(builtin("builtin:demo"))
    assert (Path(recipe.base) / "config.json").is_file()
    assert recipe.data.source == lab_folder() / "training/data/big5_statements.jsonl"
    assert recipe.data.source.is_file()


@pytest.mark.parametrize("name", ["gpt2", "meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen2.5-7B"])
def test_a_hub_id_stays_unless_such_a_folder_exists(file, name):
    setting = [f"base={name}"]
    assert read_recipe(file, MergeRecipe, setting).base == name
    Path(name).mkdir(parents=True)
    assert read_recipe(file, MergeRecipe, setting).base == str(Path.cwd() / name)
