"""Creativity: what is asked, what is counted, and what judges are shown."""

import json

import pytest

from personality_vector.errors import DataError, RecipeError
from personality_vector.measures.creativity import CreativitySpec
from personality_vector.study.recipe import EvalRecipe


@pytest.fixture
def tasks(tmp_path):
    """Return two files of tasks."""
    files = []
    for name, criteria in (("one", ["originality"]), ("two", ["elaboration", "quality"])):
        task = {"name": name, "version": "1", "request": "Uses of {item}?", "criteria": criteria}
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(json.dumps({**task, "items": [f"a {name}", f"the {name}"]}))
    return tuple(files)


def test_its_answers_are_rated_for_the_criteria_of_their_task(tasks, parrot):
    measure = CreativitySpec(tasks=tasks, limit=1).open()
    assert [rubric.trait for rubric in measure.rubrics] == ["originality", "elaboration", "quality"]
    found = measure.collect(parrot("1. A stool\n2. A hat"), 0)
    assert [(one.item, one.question, one.traits) for one in found] == [
        ("one-01", "Uses of a one?", ("originality",)),
        ("two-01", "Uses of a two?", ("elaboration", "quality")),
    ]


def test_it_counts_ideas_and_words_and_not_unfinished_thoughts(tasks, parrot, tiny):
    measure = CreativitySpec(tasks=tasks, name="c").open()
    said = ["1. A stool\n2. A big hat\n3. Stools", "", "<think>Hm", "It holds doors. Wear it now!"]
    found = measure.finish(tiny.subject(), measure.collect(parrot(*said), 0))
    fluency, words = found.readings
    assert (fluency.measure, fluency.unit, fluency.n, fluency.unscored) == (
        "c.fluency",
        "ideas",
        3,
        1,
    )
    assert fluency.value == pytest.approx((2 + 0 + 2) / 3)
    assert (words.measure, words.unit) == ("c.words", "words")
    assert words.value == pytest.approx((9 + 0 + 6) / 3)
    assert [one.item for one in found.observations[:3]] == ["one-01", "one-02", "two-02"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"judges": [{"infrequency": {}}]}, "rates answers for originality, and not for"),
        ({"tasks": ["one.yaml", "one.yaml"]}, "a value is given twice"),
        ({"tasks": ["none.yaml"]}, "none.yaml"),
        ({"limit": 0}, "limit: Input should be greater"),
    ],
)
def test_a_wrong_measure_is_refused(tasks, given, says):
    measure = {"creativity": {"tasks": ["two.yaml"], **given}}
    data = {"model": "builtin:demo", "measures": [measure]}
    with pytest.raises((RecipeError, DataError), match=says):
        EvalRecipe.parse(data, origin="r.yaml", folder=tasks[0].parent).measures[0].open()
