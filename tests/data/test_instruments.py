from collections import Counter
from pathlib import Path

import pytest

from personality_vector.data.instruments import read_instrument
from personality_vector.errors import RecipeError
from personality_vector.lab import lab_folder
from personality_vector.traits import BIG_FIVE

SHIPPED = lab_folder() / "eval" / "instruments"
HEAD = 'name: two\nversion: "1"\nitems:\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "instrument.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_interview_asks_five_open_questions_of_each_trait_keyed_both_ways():
    items = read_instrument(SHIPPED / "interview.yaml").items
    assert Counter(item.trait for item in items) == dict.fromkeys(BIG_FIVE, 5)
    for trait in BIG_FIVE:
        assert {item.keyed for item in items if item.trait == trait} == {1, -1}
    assert all(("?" in item.text) or item.text.startswith("Tell me") for item in items)


def test_every_question_of_the_self_description_is_for_any_trait():
    instrument = read_instrument(SHIPPED / "self_description.yaml")
    assert instrument.system is None
    assert {item.trait for item in instrument.items} == {None}


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_instrument_is_valid_and_asks_nothing_twice(path):
    texts = [item.text for item in read_instrument(path).items]
    assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    ("items", "complaint"),
    [
        ("  - {id: a, text: One}\n  - {id: a, text: Two}\n", "same id: a"),
        ("  - {id: a, text: One, trate: openness}\n", "did you mean 'trait'"),
        ("  - {id: a, text: One, keyed: 0}\n", "keyed"),
        ("  - {id: a, text: '  '}\n", "text"),
        ("  - {id: a}\n", "text"),
        ("  - {id: a, text: One, trait: Openness!}\n", "trait"),
        ("  []\n", "items"),
    ],
)
def test_a_wrong_instrument_is_refused_with_its_file_and_its_fault(tmp_path, items, complaint):
    path = written(tmp_path, HEAD + items)
    with pytest.raises(RecipeError, match=complaint) as refusal:
        read_instrument(path)
    assert str(path) in str(refusal.value)


def test_an_item_is_keyed_to_the_high_end_and_open_to_any_trait_unless_it_says_otherwise(tmp_path):
    item = read_instrument(written(tmp_path, HEAD + "  - {id: a, text: One}\n")).items[0]
    assert (item.trait, item.keyed) == (None, 1)
