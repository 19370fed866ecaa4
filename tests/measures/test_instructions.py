"""Instructions: each check on replies that keep to it and on replies that nearly do."""

from collections import Counter

import pytest

from personality_vector.errors import RecipeError
from personality_vector.measures.instructions import _CHECKS, Check, InstructionsSpec

CASES = {
    "words": (3, ["one two three", "Don't!", "\n one \n"], ["one two three four", "", "  "]),
    "lines": (2, ["a\nb", "a\n\nb\n", " a\r\nb"], ["a", "a\nb\nc", ""]),
    "starts": ("well", ["Well, no", '"Well"', "**Well** then", "well"], ["Wells", "So well", ""]),
    "ends": (
        "the end",
        ["This is The End.", "the end", '... "the end!"'],
        ["weekend", "the end of"],
    ),
    "contains": ("lamp", ["A Lamp.", "lamp", "a lamp-post"], ["lamps", "clamp", ""]),
    "without": (",", ["a b", "a; b"], ["a, b", ""]),
    "case": ("upper", ["STOP! 3", "ÄRGER"], ["Stop", "STOp", "123", ""]),
    "json": (
        ["name", "age"],
        [
            '{"name": "A", "age": 3}',
            '```json\n{"age": 1, "name": 2, "x": 0}\n```',
            '```\n{"age": 1, "name": 2}```',
        ],
        ['{"name": "A"}', "[1]", 'Sure: {"name": "A", "age": 3}', "{name: A}", "", "[" * 9999],
    ),
    "number": (True, ["42", "-3.5", "1,000", "7."], ["42 days", "forty", "4 2", ""]),
    "bullets": (
        2,
        ["- a\n- b", "List:\n* a\n* b\nDone", "\u2022 a\n\n\u2022 b"],
        ["- a", "-a\n-b", ""],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_check_knows_what_keeps_to_it(name):
    value, good, bad = CASES[name]
    check = Check.model_validate({name: value})
    assert [check.is_kept(text) for text in good] == [True] * len(good)
    assert [check.is_kept(text) for text in bad] == [False] * len(bad)


def test_other_forms_of_the_same_checks():
    assert Check(case="lower").is_kept("good night, 3 cats")
    assert not Check(case="lower").is_kept("Good night")
    no_the = Check(without="the")
    assert no_the.is_kept("waves and other things")
    assert not no_the.is_kept("over The waves")


def test_every_check_has_a_case_and_an_item():
    asked = InstructionsSpec().open().asking.instrument.items
    assert len(asked) == 24
    used = Counter(
        next(iter(item.check.model_dump(by_alias=True, exclude_none=True))) for item in asked
    )
    assert used.keys() == CASES.keys() == _CHECKS.keys()
    assert max(used.values()) <= 3


def test_the_share_is_over_all_replies_and_none_is_unscored(parrot):
    measure = InstructionsSpec().open()
    items = measure.asking.instrument.items
    for said in ("42", "- a\n- b\n- c", "", "<think>hm"):
        (reading,) = measure.collect(parrot(said), 0)
        assert (reading.measure, reading.n, reading.unscored) == ("instructions", 24, 0)
        kept = [item.check.is_kept("" if said.startswith("<") else said) for item in items]
        assert reading.value == sum(kept) / 24
    assert reading.value == 0.0


HEAD = 'name: mine\nversion: "1"\nitems:\n'


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ("{id: a, text: One}", "the key 'items.0.check' is missing"),
        (
            "{id: a, text: One, check: {syllables: 7}}",
            "items.0.check: give exactly one check with what it needs, such as {words: 20}, not "
            "syllables; known are words, lines, starts, ends, contains, without, case, json, "
            "number, bullets",
        ),
        ("{id: a, text: One, check: {words: 3, lines: 2}}", "not words, lines; known are"),
        ("{id: a, text: One, check: number}", "not 'number'; known are"),
        ("{id: a, text: One, check: {words: many}}", "items.0.check.words: Input should be"),
        ("{id: a, text: One, check: {words: 0}}", "items.0.check.words: Input should be greater"),
        ("{id: a, text: One, check: {case: title}}", "items.0.check.case"),
        ("{id: a, text: One, check: {json: []}}", "items.0.check.json: needs at least one"),
        ("{id: a, text: One, chek: {words: 3}}", "did you mean 'check'?"),
    ],
)  # fmt: skip
def test_a_wrong_check_is_refused_in_one_sentence(tmp_path, item, says):
    (tmp_path / "i.yaml").write_text(f"{HEAD}  - {item}\n")
    spec = InstructionsSpec.parse({"instrument": "i.yaml"}, origin="r.yaml", folder=tmp_path)
    with pytest.raises(RecipeError) as refused:
        spec.open()
    assert says in str(refused.value)
    assert str(tmp_path / "i.yaml") in str(refused.value)
    assert "\n" not in str(refused.value)
