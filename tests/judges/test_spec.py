"""Judges in a recipe: one key each, known before torch is."""

import subprocess
import sys

import pytest

from personality_vector.errors import RecipeError
from personality_vector.judges.spec import KINDS, AnyJudge
from personality_vector.recipes.schema import Recipe, schema_of

REQUIRED = {
    "local": {"checkpoint": "org/model"},
    "endpoint": {"model": "m"},
    "pairwise": {"judge": {"endpoint": {"model": "m"}}},
    "humans": {"ratings": "ratings.csv"},
}


class Asking(Recipe):
    """A recipe with a judge."""

    judge: AnyJudge


def parsed(tmp_path, judge):
    return Asking.parse({"judge": judge}, origin="r.yaml", folder=tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_dumps_it_reads(tmp_path, kind):
    recipe = parsed(tmp_path, {kind: REQUIRED.get(kind, {})})
    assert type(recipe.judge) is schema_of(KINDS, kind)
    dumped = recipe.model_dump(mode="json")
    assert list(dumped["judge"]) == [kind]
    assert Asking.parse(dumped, origin="r.yaml", folder=tmp_path) == recipe


def test_a_bare_word_is_a_judge_without_options(tmp_path):
    assert parsed(tmp_path, "classifier") == parsed(tmp_path, {"classifier": {}})


@pytest.mark.parametrize(
    ("judge", "complaint"),
    [
        ("oracle", "judge: known are classifier"),
        ({"endpoint": {}}, "the key 'model' is missing"),
        ({"endpoint": {"model": " "}}, "model"),
        ({"endpoint": {"model": "m", "checkpoint": "c"}}, "unknown key 'checkpoint'"),
        (
            {"endpoint": {"model": "m", "base_url": "http://me:secret@host/v1"}},
            "base_url: holds a key or a password; put it into the variable of api_key_env",
        ),
        ({"endpoint": {"model": "m", "scale": "0-10"}}, "scale"),
        ({"endpoint": {"model": "m", "budget": 1.0}}, "budget needs price_in and price_out"),
        ({"pairwise": {}}, "the key 'judge' is missing"),
        ({"pairwise": {"judge": "classifier"}}, "comparing needs a language model"),
        ({"humans": {}}, "the key 'ratings' is missing"),
        ({"humans": {"ratings": "r.csv", "scale": [5.0, 1.0]}}, "give its lower end first"),
        ({"local": {}}, "the key 'checkpoint' is missing"),
        ({"local": {"checkpoint": "c", "base_url": "u"}}, "unknown key 'base_url'"),
        ({"classifier": {"held_out": 1.0}}, "held_out"),
        ({"clasifier": {}}, "did you mean 'classifier'"),
        ({"local": {"checkpoint": "c"}, "endpoint": {"model": "m"}}, "has 2 keys"),
    ],
)
def test_a_wrong_judge_is_refused_in_one_sentence(tmp_path, judge, complaint):
    with pytest.raises(RecipeError, match=complaint):
        parsed(tmp_path, judge)


def test_schemas_of_judges_need_neither_torch_nor_sklearn():
    imports = ", ".join(f"personality_vector.{place.split(':')[0]}" for place in KINDS.values())
    heavy = "{'torch', 'sklearn', 'openai', 'transformers'}"
    code = f"import sys, {imports}; sys.exit(len({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
