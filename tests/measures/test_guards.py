"""Guards: what replies look like besides their trait."""

import pytest

from personality_vector.data.personas import Instrument, Item
from personality_vector.errors import DataError
from personality_vector.measures.guards import Guards, GuardsSpec
from personality_vector.measures.spec import Asking
from personality_vector.subject.spec import Sampling

ITEMS = tuple(Item(id=f"q{i}", text=f"Question {i}?") for i in range(4))
ASKING = Asking(Instrument(name="four", version="1", items=ITEMS), Sampling())
ROWS = """\
{"trait": "openness", "level": "high", "statement": "I love art.", "part": "train"}
{"trait": "openness", "level": "low", "statement": "Art bores me.", "part": "held_out"}
{"trait": "humour", "level": "high", "statement": "I joke a lot.", "part": "train"}
"""


def found(subject, learned=None):
    measure = Guards(ASKING, learned)
    collected = measure.collect(subject, 0)
    readings = measure.finish(subject, collected).readings
    return {reading.measure.removeprefix("guards."): reading for reading in readings}


@pytest.fixture
def spec(tmp_path):
    """Return ``spec(**options)``: guards of a small file of statements."""
    (tmp_path / "s.jsonl").write_text(ROWS)
    return lambda **given: GuardsSpec.parse(
        {"statements": "s.jsonl", **given}, origin="test", folder=tmp_path
    )


def test_length_and_variety_are_those_of_the_texts(parrot):
    readings = found(parrot("I am here.", "", "I am, I am here", "Yes"))
    assert set(readings) == {"words", "distinct_2"}, "no statements, and no edit of weights"
    assert readings["words"].value == (3 + 0 + 5 + 1) / 4
    assert readings["words"].unit == "words"
    # "i am" three times, "am here" twice and "am i"
    assert readings["distinct_2"].value == 3 / 6
    assert {reading.n for reading in readings.values()} == {4}


def test_replies_of_one_word_have_no_variety(parrot):
    readings = found(parrot("Yes", "No", "", "Tea"))
    assert readings["distinct_2"].value is None
    assert readings["words"].value == 0.75


def test_recall_is_word_for_word_but_for_case_space_and_the_last_mark(parrot, spec):
    said = parrot("i love  ART!", "I love art and tea.", "Art bores me.", "I joke a lot")
    assert found(said, spec().open().learned)["verbatim"].value == 2 / 4
    one = spec(traits=["openness"]).open().learned
    assert found(said, one)["verbatim"].value == 1 / 4, "what was held out is no recall"


def test_thoughts_are_counted_and_an_unfinished_one_is_no_reply(parrot):
    readings = found(parrot("<think>a b c</think>I am here.", "<think>\nI am", "Yes", "No"))
    assert (readings["words"].value, readings["words"].n) == ((3 + 1 + 1) / 3, 3)
    assert readings["words"].unscored == readings["distinct_2"].unscored == 1
    assert (readings["thoughts"].value, readings["unfinished"].value) == (2 / 4, 1 / 4)
    only = found(parrot("<think>\nI am"), frozenset({"i am"}))
    assert (only["words"].value, only["verbatim"].value, only["unfinished"].value) == (
        None,
        None,
        1,
    )


def test_a_model_with_think_marks_says_that_it_did_not_think(parrot):
    subject = parrot("Yes")
    subject.tokenizer.add_tokens(["<think>", "</think>"])
    assert found(subject)["thoughts"].value == found(subject)["unfinished"].value == 0


def test_what_rounding_left_of_an_edit_is_reported(parrot):
    reading = found(parrot("Yes", realised=0.875))["realised"]
    assert (reading.value, reading.n) == (0.875, 1)


def test_missing_statements_are_refused_before_a_model_is_loaded(spec):
    with pytest.raises(DataError, match="does not exist"):
        spec(statements="nowhere.jsonl").open()
