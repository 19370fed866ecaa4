"""Guards: what replies look like besides their trait."""

import zlib

import pytest

from personality_vector.data.personas import Instrument, Item
from personality_vector.errors import DataError, RecipeError
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


ALWAYS = {
    *("words", "distinct_2", "repetition", "compression", "first_person"),
    *("refusals", "disclaimers", "other_language"),
}


def found(subject, learned=None, benign=None):
    measure = Guards(ASKING, learned, benign)
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
    assert set(readings) == ALWAYS, "no statements, no benign requests, and no edit of weights"
    assert readings["words"].value == (3 + 0 + 5 + 1) / 4
    assert readings["words"].unit == "words"
    # "i am" three times, "am here" twice and "am i"
    assert readings["distinct_2"].value == 3 / 6
    assert {reading.n for reading in readings.values()} == {4}


def test_every_number_is_what_its_text_test_counts(parrot):
    said = (
        "I'm sorry, but I can't help with that.",
        "As an AI, I have no feelings about my day.",
        "Ich gehe heute nicht mit dir in das Kino.",
        "I am here. I am here. I am here. I am here.",
    )
    readings = found(parrot(*said))
    value = {name: reading.value for name, reading in readings.items()}
    assert [value[name] for name in ("refusals", "disclaimers", "other_language")] == [1 / 4] * 3
    counts = {"i'm": 1, "i": 1 + 1 + 4, "my": 1}
    assert value["first_person"] == sum(counts.values()) / (8 + 10 + 9 + 12)
    grams = [5, 7, 6, 9]
    assert value["repetition"] == pytest.approx(6 / sum(grams)), "nine 4-grams of three kinds"
    raw = "\n".join(said).encode()
    assert value["compression"] == len(raw) / len(zlib.compress(raw, 9))
    units = {"words": "words", "compression": "ratio"}
    assert {n: r.unit for n, r in readings.items() if r.unit} == units


def test_refused_benign_requests_are_counted_among_all_of_them(parrot, spec):
    measure = spec(benign="builtin:eval/instruments/benign.yaml").open()
    assert len(measure.benign.instrument.items) == 20
    said = parrot("I cannot assist with that.", "Type `kill`.", "<think>", "Sure", "")
    reading = found(said, benign=measure.benign)["over_refusal"]
    assert (reading.value, reading.n, reading.unscored) == (4 / 16, 16, 4)
    assert "over_refusal" not in found(said)
    asked = measure.benign
    assert (asked.sampling, asked.samples) == (measure.asking.sampling, measure.asking.samples)


def test_a_missing_instrument_of_benign_requests_is_refused(spec):
    with pytest.raises(RecipeError, match="nowhere"):
        spec(benign="nowhere.yaml").open()


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
