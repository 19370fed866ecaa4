"""Creativity tasks as files, and the ideas of an answer."""

import json

import pytest

from personality_vector.data.ideas import (
    CRITERIA,
    TASKS,
    content_words,
    distinct_ideas,
    ideas,
    read_tasks,
)
from personality_vector.errors import DataError, RecipeError
from personality_vector.lab import builtin

TASK = {"name": "mine", "version": "1", "request": "Uses of {item}?", "items": ["a cup", "a pen"]}


@pytest.fixture
def task(tmp_path):
    """Return ``task(**changes)``: the file of a user's task."""

    def write(**changes):
        file = tmp_path / f"{changes.get('name', 'mine')}.yaml"
        file.write_text(json.dumps({**TASK, **changes}))
        return file

    return write


@pytest.mark.parametrize("file", TASKS)
def test_a_task_that_ships_has_twenty_items_and_more(file):
    items = read_tasks([builtin(file)]).items
    assert len(items) >= 20
    assert len({item.text for item in items}) == len(items)
    assert all(item.about in item.text for item in items)
    assert {name for item in items for name in item.criteria} == set(CRITERIA)


def test_a_users_task_is_read_like_those_that_ship(task):
    files = [task(criteria=["quality"]), task(name="other")]
    one = read_tasks(files, limit=1)
    assert (one.name, one.version) == ("mine-other", "1-1")
    assert [(i.id, i.text, i.about, i.criteria) for i in one.items] == [
        ("mine-01", "Uses of a cup?", "a cup", ("quality",)),
        ("other-01", "Uses of a cup?", "a cup", tuple(CRITERIA)),
    ]
    assert len(read_tasks(files).items) == 4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"criteria": ["originality", "beauty"]},
            "unknown criterion 'beauty'; known are elaboration, originality, quality",
        ),
        ({"criteria": []}, "criteria: needs at least one"),
        ({"request": "Uses?"}, "request: a request contains {item}"),
        ({"items": ["a cup", "a cup"]}, "items: a value is given twice"),
        ({"items": []}, "items: needs at least one"),
        ({"item": "a cup"}, "unknown key 'item'; did you mean 'items'?"),
    ],
)
def test_a_wrong_task_is_refused_in_one_sentence(task, change, says):
    with pytest.raises(RecipeError) as refused:
        read_tasks([task(**change)])
    assert says in str(refused.value)
    assert "mine.yaml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_two_tasks_of_one_name_are_refused(task):
    with pytest.raises(DataError, match="two tasks are called mine; give each its own name"):
        read_tasks([task(), task()])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1. A stool.\n2. A door\nstop.", ["A stool.", "A door stop."]),
        ("Of course!\n\n1) **Stool**: sit.\n\n2) Pot\n\nHave fun!", ["**Stool**: sit.", "Pot"]),
        ("### 1. Stool\nSit on it.\n### 2. Pot", ["Stool Sit on it.", "Pot"]),
        ("1. Stool\n\n   It is strong.\n2. Pot", ["Stool It is strong.", "Pot"]),
        ("**1.** Stool\n**2.** Pot", ["Stool", "Pot"]),
        ("- Stool\n* Pot\n\N{BULLET} Hat", ["Stool", "Pot", "Hat"]),
        ("Of 3. Sit on it there.", ["Sit on it there."]),
        ("2.5 kilos of it hold a door. Sit on it.", ["2.5 kilos of it hold a door.", "Sit on it."]),
        ("Stool", ["Stool"]),
        ("1.\n2.", ["1.\n2."]),
        ("\n", []),
    ],
)
def test_ideas_are_entries_of_a_list_or_sentences(text, expected):
    assert ideas(text) == expected


def test_equal_ideas_count_once():
    text = "1. Use it as a door stop.\n2. Door stops!\n3. A hat for dolls\n4. The dolls' hats"
    assert list(distinct_ideas(text).values()) == ["Use it as a door stop.", "A hat for dolls"]
    assert distinct_ideas("1.\n2.") == distinct_ideas(" ... ") == {}
    assert content_words("to be or not") == {"to", "be", "or", "not"}
    assert content_words("glass bus this") == {"glass", "bus"}
