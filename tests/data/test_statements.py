import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from personality_vector.data.chats import DataSpec, select_chats
from personality_vector.data.statements import (
    Statement,
    normalised,
    part_of,
    read_statements,
    select_statements,
)
from personality_vector.errors import DataError

TRAITS = ("openness", "extraversion")


def row(number, **more):
    level = ("high", "low")[number % 2]
    return {"trait": TRAITS[number % 3 % 2], "level": level, "statement": f"I do {number}", **more}


def written(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(entry) + "\n" for entry in rows), encoding="utf-8")
    return path


def texts(statements):
    return {statement.text for statement in statements}


def test_the_parts_are_disjoint_and_together_everything(tmp_path):
    path = written(tmp_path / "s.jsonl", [row(i) for i in range(500)])
    train, held_out = (read_statements(path, part=part) for part in ("train", "held_out"))
    assert not texts(train) & texts(held_out)
    assert texts(train) | texts(held_out) == texts(read_statements(path))
    assert len(held_out) / 500 == pytest.approx(0.2, abs=0.054)  # three standard errors


def test_the_split_depends_on_nothing_but_the_text(tmp_path):
    rows = [row(i) for i in range(200)]
    shuffled = random.Random(0).sample(rows, 120)
    whole = written(tmp_path / "a" / "s.jsonl", rows)
    part = written(tmp_path / "b" / "t.jsonl", shuffled)
    kept = {entry["statement"] for entry in shuffled}
    held_out = texts(read_statements(whole, part="held_out"))
    assert texts(read_statements(part, part="held_out")) == held_out & kept
    recorded = ["held_out", "held_out", "train", "train", "train"]  # must never change
    assert [part_of(f"I do {i}", 0.5) for i in range(5)] == recorded


@given(st.text(max_size=30), st.floats(0, 1))
def test_case_and_white_space_do_not_change_the_part(text, held_out):
    assert part_of(f"  {text.replace(' ', '   ')}\n", held_out) == part_of(text, held_out)
    assert normalised(normalised(text)) == normalised(text)


def test_copies_land_in_the_same_part_whatever_their_trait_and_case(tmp_path):
    copies = [row(i) | {"statement": "I  LIKE tea"} for i in range(3)]
    copies[1]["statement"] = "i like TEA"
    path = written(tmp_path / "s.jsonl", [*copies, *(row(i) for i in range(40))])
    parts = [
        sum(normalised(s.text) == "i like tea" for s in read_statements(path, part=part))
        for part in ("train", "held_out")
    ]
    assert sorted(parts) == [0, 3]


@given(st.text(max_size=10), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_share_holds_out_whatever_a_smaller_one_does(text, one, other):
    if part_of(text, min(one, other)) == "held_out":
        assert part_of(text, max(one, other)) == "held_out"


@pytest.mark.parametrize(("share", "part"), [(0.0, "train"), (1.0, "held_out")])
def test_the_extreme_shares_hold_out_nothing_and_everything(tmp_path, share, part):
    path = written(tmp_path / "s.jsonl", [row(i) for i in range(30)])
    assert len(read_statements(path, part=part, held_out=share)) == 30


def test_a_part_that_a_row_names_wins(tmp_path):
    rows = [row(i, part="held_out" if i < 10 else "train") for i in range(30)]
    path = written(tmp_path / "s.jsonl", rows)
    expected = {f"I do {i}" for i in range(10)}
    assert texts(read_statements(path, part="held_out", held_out=0.9)) == expected


def test_a_directory_is_its_files_in_order_of_name(tmp_path):
    written(tmp_path / "b.jsonl", [row(1)])
    written(tmp_path / "a.jsonl", [row(2), row(0)])
    (tmp_path / "README.md").write_text("no statements")
    found = [statement.text for statement in read_statements(tmp_path)]
    assert found == ["I do 2", "I do 0", "I do 1"]


def test_trait_and_level_select(tmp_path):
    path = written(tmp_path / "s.jsonl", [row(i) for i in range(12)])
    found = read_statements(path, trait="extraversion", level="high")
    assert found == [Statement("extraversion", "high", f"I do {i}") for i in (4, 10)]
    assert str(found[0].pole) == "extraversion:high"


GOOD = json.dumps(row(1)).encode()


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"{", "is not JSON"),
        (b"[1]", "should be one JSON object"),
        (b'"text"', "should be one JSON object"),
        (b"\xff\xfe", "is not UTF-8: .*codec"),
        (b'{"trait": "openness", "level": "high"}', "the key 'statement' is missing"),
        (b'{"trait": "openness", "level": "middle", "statement": "x"}', "level"),
        (b'{"trait": "Openness", "level": "high", "statement": "x"}', "trait"),
        (b'{"trait": "openness", "level": "high", "statement": 3}', "statement"),
        (b'{"trait": "openness", "level": "high", "statement": "x", "prt": "train"}', "prt"),
        (b'{"trait": "openness", "level": "high", "statement": "x", "part": "test"}', "part"),
    ],
)
def test_a_line_that_is_no_row_is_refused_by_file_and_number(tmp_path, line, complaint):
    path = tmp_path / "s.jsonl"
    path.write_bytes(GOOD + b"\n\n" + line + b"\n")
    with pytest.raises(DataError, match=complaint) as refusal:
        read_statements(path)
    assert f"{path} line 3" in str(refusal.value)


def test_rows_without_a_statement_are_dropped_and_counted(tmp_path, caplog):
    blank = [row(0, statement=" "), row(0, statement=None), row(1, statement="", part="train")]
    nothing = {"trait": "", "level": None, "statement": " ", "part": None}
    path = written(tmp_path / "s.jsonl", [row(0), *blank, nothing, row(1)])
    with caplog.at_level("WARNING"):
        for _ in range(2):
            assert [one.text for one in read_statements(path)] == ["I do 0", "I do 1"]
    assert caplog.messages == [f"{path}: dropped rows: 4 empty"]
    for part, count in (("train", 4), ("held_out", 3)):
        assert select_statements(path, part=part, held_out=float(part == "held_out"))[1] == count
    assert select_statements(path, level="low")[1] == 2
    chats = select_chats(DataSpec(source=path, part="all", pole="openness:high"))
    assert (len(chats.chats), chats.dropped) == (1, {"empty": 3})
    only = written(tmp_path / "blank.jsonl", [*blank, nothing])
    with pytest.raises(DataError, match=r"no statements there; dropped rows: 4 empty; it has no o"):
        read_statements(only)


def test_a_statement_in_both_parts_is_refused(tmp_path):
    leak = [row(1, part="train"), row(1, part="held_out", trait="agreeableness")]
    path = written(tmp_path / "s.jsonl", leak)
    with pytest.raises(DataError, match="line 2: this statement is held_out, but train at"):
        read_statements(path)


def test_an_empty_selection_says_what_was_asked_and_what_is_there(tmp_path):
    path = written(tmp_path / "s.jsonl", [row(0, part="train"), row(2, part="train")])
    with pytest.raises(DataError, match=r"no held_out openness.*openness:high train 2") as refusal:
        read_statements(path, trait="openness", part="held_out")
    assert str(path) in str(refusal.value)


def test_nothing_to_read_is_refused(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_statements(tmp_path / "absent.jsonl")
    with pytest.raises(DataError, match=r"no \.jsonl file"):
        read_statements(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="no rows at all"):
        read_statements(tmp_path)


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + GOOD + b"\r\n" + json.dumps(row(2)).encode())
    assert [statement.text for statement in read_statements(path)] == ["I do 1", "I do 2"]
