"""Pairs of creative and uncreative prompts: which can be read, and which part each is of."""

import json
from pathlib import Path

import pytest

from personality_vector.data.creativity import (
    SPLITS,
    CreativityPair,
    instrument_of_pairs,
    read_creativity_pairs,
)
from personality_vector.errors import DataError

SHIPPED = Path(__file__).parents[2] / "training/steering/creativity.jsonl"


@pytest.fixture
def written(tmp_path):
    """Return ``written(rows)``: a file of pairs."""

    def write(rows):
        file = tmp_path / "pairs.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return file

    return write


def rows(count, **more):
    return [
        {"creative": f"Dream of {n}.", "uncreative": f"Count to {n}.", **more} for n in range(count)
    ]


def test_what_is_shipped_has_many_pairs_in_each_part_and_no_prompt_twice():
    pairs = read_creativity_pairs(SHIPPED)
    texts = [text for pair in pairs for text in (pair.creative, pair.uncreative)]
    assert len(pairs) >= 40
    assert len(set(texts)) == len(texts)
    parts = {part: read_creativity_pairs(SHIPPED, part) for part in SPLITS}
    assert min(map(len, parts.values())) >= 10
    kinds = {pair.creative.split()[0] for pair in parts["test"]}
    assert len(kinds) >= 4, "stories, names, uses and explanations"


def test_parts_are_disjoint_complete_and_independent_of_the_other_rows(written):
    given = rows(400)
    parts = {part: read_creativity_pairs(written(given), part) for part in SPLITS}
    assert sorted(pair.creative for own in parts.values() for pair in own) == sorted(
        row["creative"] for row in given
    )
    shares = [len(parts[part]) / 400 for part in SPLITS]
    assert shares == pytest.approx([0.5, 0.25, 0.25], abs=0.07)
    fewer = read_creativity_pairs(written(given[::-3]), "test")
    assert {pair.creative for pair in fewer} <= {pair.creative for pair in parts["test"]}


def test_a_row_may_name_its_part(written):
    file = written([row | {"part": part} for part, row in zip(SPLITS * 2, rows(6), strict=True)])
    assert [pair.creative for pair in read_creativity_pairs(file, "validation")] == [
        "Dream of 1.",
        "Dream of 4.",
    ]
    asked = instrument_of_pairs(file).items
    assert [(item.id, item.text) for item in asked] == [
        ("p01", "Dream of 2."),
        ("p02", "Dream of 5."),
    ]


def test_too_few_pairs_for_the_split_are_refused_in_one_sentence(written):
    file = written(rows(4, part="train"))
    assert len(read_creativity_pairs(file)) == 4
    with pytest.raises(DataError) as refused:
        instrument_of_pairs(file)
    assert str(refused.value) == (
        f"{file}: its pairs are 4 train, 0 validation, 0 test, and each part needs 2; add pairs, "
        'or write "part": "validation" into some of its rows'
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no pair"),
        ('{"creative": "a"}', "line 1: the key 'uncreative' is missing"),
        ('\n{"creative": "a", "uncreative": " "}', "line 2: uncreative"),
        ('{"creative": "a b", "uncreative": "A  b"}', "line 1: .* are the same prompt"),
        ('{"creative": "a", "uncreative": "b", "part": "dev"}', "line 1: part: "),
        (
            '{"creative": "a", "uncreative": "b", "dull": "c"}',
            "line 1: unknown key 'dull'; known keys are creative, part, uncreative",
        ),
        ("{", "line 1: is not JSON"),
    ],
)
def test_unreadable_pairs_are_refused_by_line(tmp_path, text, message):
    file = tmp_path / "pairs.jsonl"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_creativity_pairs(file)
    with pytest.raises(DataError, match="cannot be read"):
        read_creativity_pairs(tmp_path / "absent.jsonl")


def test_a_pair_without_a_part_dumps_none():
    pair = CreativityPair(creative="a", uncreative="b")
    assert pair.model_dump() == {"creative": "a", "uncreative": "b"}
