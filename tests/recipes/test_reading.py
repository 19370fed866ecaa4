"""Reading recipes: each mistake is one sentence that names the file and the key."""

import os
import re

import pytest

from personality_vector.errors import RecipeError
from personality_vector.finetuning.recipe import TrainRecipe
from personality_vector.merging.recipe import MergeRecipe
from personality_vector.recipes.reading import parse_value, read_recipe, read_yaml

GOOD = """\
base: ./base
method: ties
options: {density: 0.2}
terms:
  - {tuned: ./one, alpha: 0.8}
  - {delta: ./two, alpha: -0.4, label: second}
"""


@pytest.fixture
def read(tmp_path):
    """Return ``read(text)``: the merge recipe of that text."""

    def parse(text, kind=MergeRecipe):
        file = tmp_path / "mine.yaml"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return read_recipe(file, kind)

    return parse


def test_a_recipe_says_what_was_written_and_defaults_for_the_rest(read, tmp_path):
    recipe = read(GOOD)
    assert recipe.base == str(tmp_path / "base")
    assert [term.alpha for term in recipe.terms] == [0.8, -0.4]
    assert recipe.terms[0].source == str(tmp_path / "one")
    assert recipe.terms[1].source == tmp_path / "two"
    assert (recipe.seed, recipe.output.dtype, recipe.output.rounding) == (0, "same", "nearest")
    assert MergeRecipe.parse(recipe.model_dump(), origin="again", folder=tmp_path) == recipe


MISTAKES = {
    "unknown key": (GOOD + "sede: 3\n", "unknown key 'sede'; did you mean 'seed'?"),
    "unlike any key": (
        GOOD + "zzz: 3\n",
        "unknown key 'zzz'; known keys are base, device, embeddings, exclude",
    ),
    "unknown key in a list": (
        GOOD.replace("alpha: 0.8", "alfa: 0.8"),
        "unknown key 'terms.0.alfa'; did you mean 'alpha'?",
    ),
    "unknown key in a mapping": (
        GOOD + "output: {rouding: nearest}\n",
        "unknown key 'output.rouding'; did you mean 'rounding'?",
    ),
    "duplicate key": (GOOD + "base: ./other\n", "line 7: the key 'base' is given twice"),
    "duplicate key in a list": (
        GOOD.replace("alpha: 0.8", "alpha: 0.8, alpha: 0.9"),
        "line 5: the key 'alpha' is given twice",
    ),
    "half": ('method: ties\nlabel: "\\uD800"\n', "line 2: half of a surrogate pair is not a"),
    "alias": ("base: &b ./base\nmethod: *b\n", "line 2: aliases are not supported"),
    "python tag": ("base: !!python/object/apply:os.getcwd []\n", "line 1: could not determine a c"),
    "empty": ("", "a recipe is a mapping of keys to values, this is empty"),
    "only a comment": ("# nothing\n", "this is empty"),
    "list": ("- base\n", "this is a list"),
    "text": ("base\n", "this is a text"),
    "2 MB": (GOOD + "#" * 2_000_000, "of more than 1 MB"),
    "not YAML": (GOOD + "terms: [\n", "line 8: "),
    "control character": (GOOD + "seed: \x07\n", "not YAML: unacceptable character"),
    "not UTF-8": (GOOD.encode() + b"# \xff\n", "cannot be read: "),
    "two documents": (GOOD + "---\n" + GOOD, "but found another document"),
    "missing key": (GOOD.replace("base: ./base\n", ""), "the key 'base' is missing"),
    "missing key in a list": (
        GOOD.replace(", alpha: 0.8", ""),
        "the key 'terms.0.alpha' is missing",
    ),
    "NaN": (GOOD.replace("0.8", ".nan"), "terms.0.alpha: Input should be a finite number"),
    "infinity": (GOOD.replace("0.8", "-.inf"), "terms.0.alpha: Input should be a finite number"),
    "overflow": (GOOD.replace("0.8", "1.0e+999"), "terms.0.alpha: Input should be a finite"),
    "NaN option": (GOOD.replace("0.2", ".nan"), "options.density: Input should be a finite"),
    "wrong type": (GOOD.replace("0.8", "much"), "terms.0.alpha: Input should be a valid number"),
    "list for a text": (GOOD.replace("./base", "[a]"), "base: Input should be a valid string"),
    "no terms": ("base: ./b\nterms: []\n", "terms: needs at least one"),
    "two sources": (
        GOOD.replace("tuned: ./one", "tuned: a, delta: b"),
        "terms.0: give either delt",
    ),
    "no source": (GOOD.replace("tuned: ./one, ", ""), "terms.0: give either delta"),
    "impossible size": (
        GOOD + "output: {shard_size: big}\n",
        "output.shard_size: must be a size such as 5GB",
    ),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_that_names_file_and_key(read, tmp_path, text, message):
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        read(text)
    sentence = str(caught.value)
    assert sentence.startswith(f"{tmp_path / 'mine.yaml'}:")
    assert "\n" not in sentence
    assert len(sentence) < 400


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(
            GOOD + "seed: 2020-13-45\n",
            id="impossible date",
        ),
        pytest.param(
            "base: " + "[" * 3000 + "]" * 3000,
            id="nested too deeply",
        ),
    ],
)
def test_yaml_that_python_chokes_on_is_a_recipe_error(read, text):
    with pytest.raises(RecipeError, match=r"mine\.yaml"):
        read(text)


@pytest.mark.parametrize("alpha", ["'0.5'", "true"])
def test_a_number_is_not_guessed_from_something_else(read, alpha):
    with pytest.raises(RecipeError, match=r"terms\.0\.alpha"):
        read(GOOD.replace("0.8", alpha))


def test_a_missing_file_says_how_to_list_the_shipped_ones(tmp_path):
    with pytest.raises(RecipeError, match=r"absent\.yaml: no such file; `pvec recipes`"):
        read_yaml(tmp_path / "absent.yaml")


def test_a_folder_is_not_a_recipe(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        read_yaml(tmp_path)


def test_a_recipe_cannot_be_changed_afterwards(read):
    with pytest.raises(ValueError, match="frozen"):
        read(GOOD).seed = 1


def test_a_pole_must_be_a_pole(read):
    text = "base: ./b\npole: extraversion\ndata: {source: x.jsonl}\n"
    with pytest.raises(RecipeError, match="pole: 'extraversion' is not a pole: write trait:high"):
        read(text, TrainRecipe)


def test_a_number_without_a_dot_is_a_number(read):
    assert read(GOOD.replace("alpha: 0.8", "alpha: 5e-1")).terms[0].alpha == 0.5


ODD_TAGS = [
    "!!float ''",
    "!!int ''",
    "!!timestamp x",
    "!!binary é",
    "!!omap 3",
    "!!set [1]",
    "!!bool ''",
]


@pytest.mark.parametrize("value", ODD_TAGS)
def test_a_tag_that_yaml_cannot_build_is_one_sentence(tmp_path, value):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"base: {value}\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml") as caught:
        read_yaml(file)
    assert "\n" not in str(caught.value)
    with pytest.raises(RecipeError, match="is not a YAML value"):
        parse_value(value)


def test_a_recipe_that_is_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(RecipeError, match="pipe"):
        read_yaml(tmp_path / "recipe.yaml")


def test_the_home_of_a_user_who_does_not_exist_is_one_sentence(read):
    with pytest.raises(RecipeError, match="~nosuchuser/base: there is no user of this name"):
        read(GOOD.replace("./base", "~nosuchuser/base"))


@pytest.mark.parametrize("text", ["a: [" + "[]," * 300_000 + "]", "a: [" + "1," * 400_000 + "]"])
def test_a_recipe_of_too_many_parts_is_refused_at_once(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(RecipeError, match="more than 100,000 parts"):
        read_yaml(tmp_path / "r.yaml")
