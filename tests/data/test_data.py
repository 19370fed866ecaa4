"""Data files as chats: what a row becomes, and how a bad row is named."""

import csv
import json

import pytest

from personality_vector.data.chats import DataSpec, read_chats, select_chats
from personality_vector.data.statements import part_of
from personality_vector.errors import DataError, PersonalityVectorError
from personality_vector.traits import Pole

HIGH, LOW = Pole("extraversion", "high"), Pole("extraversion", "low")
STATEMENTS = [
    {"trait": "extraversion", "level": level, "statement": f"I {level} {n}", "part": part}
    for level in ("high", "low")
    for n, part in enumerate(["train", "train", "held_out"])
]
BIG5 = [
    {
        "trait": "extraversion",
        "level": level,
        "train_instruction": "You are an extraverted person.",
        "train_input": f"Question {n}, with a comma\nand a second line?",
        "train_output": f'A "{level}" answer {n}.',
    }
    for level in ("high", "low")
    for n in range(10)
]
CHATS = [
    {
        "prompt": [{"role": "user", "content": f"Q{n}"}],
        "completion": [{"role": "assistant", "content": f"A{n}"}],
    }
    for n in range(10)
]


@pytest.fixture
def file(tmp_path):
    """Return ``file(rows, name)``: a data file of those rows."""

    def write(rows, name="data.jsonl"):
        path = tmp_path / name
        with path.open("w", encoding="utf-8", newline="") as stream:
            if name.endswith(".csv"):
                writer = csv.DictWriter(stream, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
            else:
                stream.writelines(
                    (row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows
                )
        return path

    return write


def texts(chats):
    return [(chat[-2]["content"], chat[-1]["content"]) for chat in chats]


def test_statements_answer_the_questions_in_turn(file):
    spec = DataSpec(source=file(STATEMENTS), pole=HIGH, part="all", questions=("P?", "Q?"))
    chats = read_chats(spec)
    assert texts(chats) == [("P?", "I high 0"), ("Q?", "I high 1"), ("P?", "I high 2")]
    assert all([m["role"] for m in chat] == ["user", "assistant"] for chat in chats)


@pytest.mark.parametrize(
    ("selection", "count"),
    [
        ({"pole": HIGH}, 2),
        ({"pole": LOW, "part": "held_out"}, 1),
        ({"part": "all"}, 6),
        ({"part": "all", "limit": 4}, 4),
    ],
)
def test_statements_are_selected_by_pole_part_and_limit(file, selection, count):
    assert len(read_chats(DataSpec(source=file(STATEMENTS), **selection))) == count


def test_a_system_message_comes_first(file):
    spec = DataSpec(source=file(STATEMENTS), pole=HIGH, system="Be yourself.")
    assert {chat[0]["content"] for chat in read_chats(spec)} == {"Be yourself."}


@pytest.mark.parametrize("name", ["big5.jsonl", "big5.csv"])
def test_big5chat_keeps_question_and_answer_and_drops_the_instruction(file, name):
    spec = DataSpec(source=file(BIG5, name), format="big5chat", part="all", pole=HIGH)
    chats = read_chats(spec)
    assert texts(chats) == [(row["train_input"], row["train_output"]) for row in BIG5[:10]]
    assert "extraverted" not in json.dumps(chats)


@pytest.mark.parametrize(
    ("rows", "form"), [(BIG5, "big5chat"), (CHATS, "chats")], ids=["big5chat", "chats"]
)
def test_the_two_parts_are_disjoint_and_complete(file, rows, form):
    source = file(rows)
    parts = [
        texts(read_chats(DataSpec(source=source, format=form, part=part, held_out=0.5)))
        for part in ("train", "held_out", "all")
    ]
    assert not {asked for asked, _ in parts[0]} & {asked for asked, _ in parts[1]}
    assert sorted(parts[0] + parts[1]) == sorted(parts[2])


def test_both_poles_of_a_question_are_in_the_same_part(file):
    spec = DataSpec(source=file(BIG5), format="big5chat", held_out=0.5)
    asked = [question for question, _ in texts(read_chats(spec))]
    assert all(part_of(question, 0.5) == "train" for question in asked)
    assert sorted(asked) == sorted(2 * list(dict.fromkeys(asked)))


TURNS = [[*row["prompt"], *row["completion"]] for row in CHATS]
SAME_CHATS = {
    "texts": [{"prompt": f"Q{n}", "completion": f"A{n}"} for n in range(10)],
    "messages": [{"messages": turns} for turns in TURNS],
    "cells": [{"messages": json.dumps(turns)} for turns in TURNS],
    "mixed": [{"prompt": f"Q{n}", "completion": json.dumps(TURNS[n][1:])} for n in range(10)],
}


@pytest.mark.parametrize("form", ["chats", None])
@pytest.mark.parametrize("name", SAME_CHATS)
def test_chats_in_any_shape_are_the_same_chats_in_the_same_parts(file, name, form):
    source = file(SAME_CHATS[name], "data.jsonl" if name == "messages" else "data.csv")
    spec = DataSpec(source=source, format=form, held_out=0.5)
    again = DataSpec(source=file(CHATS, "again.jsonl"), format="chats", held_out=0.5)
    assert read_chats(spec) == read_chats(again)


def test_a_text_that_begins_with_a_bracket_is_a_text(file):
    rows = [{"prompt": "[1, 2] is what?", "completion": "[3]"}]
    spec = DataSpec(source=file(rows), part="all", system="Be brief.")
    assert [m["content"] for m in read_chats(spec)[0]] == ["Be brief.", "[1, 2] is what?", "[3]"]


@pytest.mark.parametrize("rows", [STATEMENTS, BIG5, CHATS], ids=["statements", "big5", "chats"])
def test_the_format_is_told_by_the_columns(file, rows):
    form = {"statement": "statements", "train_input": "big5chat", "prompt": "chats"}
    named = next(form[key] for key in form if key in rows[0])
    spec = DataSpec(source=file(rows), pole=HIGH)
    assert read_chats(spec) == read_chats(spec.model_copy(update={"format": named}))


def test_contents_in_parts_that_are_texts_are_read_and_others_shown(file):
    parts = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "!"}]
    asked = {"role": "user", "content": parts}
    rows = [{"messages": [asked, {"role": "assistant", "content": parts[:1]}]}]
    assert [m["content"] for m in read_chats(DataSpec(source=file(rows), part="all"))[0]] == [
        "Hi!",
        "Hi",
    ]
    image = {"role": "user", "content": [{"type": "image"}]}
    with pytest.raises(DataError, match=r"that are texts, not .*'type': 'image'"):
        read_chats(DataSpec(source=file([{"messages": [image]}])))
    said = [{"role": role, "content": "Hi"} for role in ("human", "gpt")]
    with pytest.raises(DataError, match="its roles are human, gpt"):
        read_chats(DataSpec(source=file([{"messages": said}])))


def test_columns_of_no_format_are_named_with_the_first_row(file):
    source = file([{"conversations": [], "id": 1}])
    with pytest.raises(DataError, match=r"line 1: this row has the keys conversations, id; needed"):
        read_chats(DataSpec(source=source))


def test_dropped_rows_are_counted_by_reason_and_said(file, caplog):
    no = "I'm sorry, but I can't help with that."
    said = ["", "Ho.", "Ho.", no, "I can't wait to see them!", "As an AI, I like nothing."]
    rows = [{**BIG5[0], "train_output": text} for text in said]
    spec = DataSpec(source=file(rows), format="big5chat", part="all")
    plain = select_chats(spec)
    assert [answer for _, answer in texts(plain.chats)] == said[1:]
    assert plain.dropped == {"empty": 1}
    strict = select_chats(spec.model_copy(update={"drop": ("duplicate", "refusal")}))
    assert [answer for _, answer in texts(strict.chats)] == [said[1], said[4]]
    assert strict.dropped == {"empty": 1, "duplicate": 1, "refusal": 2}
    assert "data.jsonl: dropped rows: 1 empty, 1 duplicate, 2 refusal" in caplog.text


def test_rows_of_another_pole_or_part_are_not_dropped_rows(file):
    rows = [{**row, "train_output": ""} if n % 2 else row for n, row in enumerate(BIG5)]
    spec = DataSpec(source=file(rows), format="big5chat", pole=HIGH, held_out=0.5)
    parts = [select_chats(spec.model_copy(update={"part": part})) for part in ("train", "held_out")]
    assert sum(len(each.chats) for each in parts) == 5
    assert sum(each.dropped["empty"] for each in parts) == 5


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "completion": " "},
        {"messages": None},
        {"prompt": "Hi", "completion": "<think>So, they said hi.</think>\n"},
        {"prompt": "Hi", "completion": "<think>Cut off bef"},
    ],
)
def test_only_empty_rows_are_refused_with_their_number(file, row):
    with pytest.raises(DataError, match=r"has no rows; dropped rows: 2 empty"):
        read_chats(DataSpec(source=file([row, row]), part="all"))


def test_chats_are_prompt_and_completion_as_written(file):
    chats = read_chats(DataSpec(source=file(CHATS), format="chats", part="all"))
    assert chats == [[*row["prompt"], *row["completion"]] for row in CHATS]


NO_LEVEL = {key: value for key, value in BIG5[0].items() if key != "level"}
NOT_ASSISTANT = {**CHATS[0], "completion": CHATS[0]["prompt"]}


@pytest.mark.parametrize(
    ("form", "row", "message"),
    [
        ("statements", "{", "not JSON"),
        ("statements", {**STATEMENTS[0], "level": "mid"}, "level: Input should be 'high' or 'low'"),
        ("statements", {**STATEMENTS[0], "extra": 1}, "unknown key 'extra'"),
        ("big5chat", "{", "is not JSON"),
        ("big5chat", "[]", "should be one JSON object"),
        ("big5chat", NO_LEVEL, "needs the key 'level'"),
        ("chats", "{}", "needs prompt and completion, or messages; this row has no keys"),
        ("chats", {"prompt": "Hi", "text": "Ho"}, "; this row has the keys prompt, text"),
        (
            "chats",
            {"prompt": [{"role": "user"}], "completion": []},
            "prompt must be a text or a list of m",
        ),
        (
            "chats",
            {"prompt": [None], "completion": "x"},
            "role and a content that are texts, not None",
        ),
        ("chats", {"messages": "Hi"}, "messages must be a list of messages"),
        ("chats", {"prompt": str(CHATS[0]["prompt"]), "completion": "x"}, "is written as JSON"),
        ("chats", NOT_ASSISTANT, "must end with a message of the assistant"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(file, form, row, message):
    good = {"statements": STATEMENTS, "big5chat": BIG5, "chats": CHATS}[form][1]
    source = file([good, "", row])
    with pytest.raises(DataError, match=message) as caught:
        read_chats(DataSpec(source=source, format=form, part="all"))
    assert str(caught.value).startswith(f"{source} line 3:")


@pytest.mark.parametrize(
    ("form", "row"),
    [
        pytest.param("big5chat", {**BIG5[0], "level": "mid"}, id="level"),
        pytest.param("big5chat", {**BIG5[0], "train_input": 3}, id="number"),
        pytest.param("chats", {"prompt": 3, "completion": None}, id="a number"),
    ],
)
def test_a_row_of_the_wrong_kind_is_named_by_file_and_line(file, form, row):
    source = file([row])
    with pytest.raises(PersonalityVectorError) as caught:
        read_chats(DataSpec(source=source, format=form, part="all"))
    assert str(caught.value).startswith(f"{source} line 1:")


def test_a_csv_row_is_named_by_the_line_where_it_ends(file):
    source = file([BIG5[0], {**BIG5[1], "level": ""}], "big5.csv")
    lines = source.read_text().replace("level", "lvl")
    source.write_text(lines)
    with pytest.raises(DataError, match=r"big5\.csv line 3: a BIG5-CHAT row needs the key 'level'"):
        read_chats(DataSpec(source=source, format="big5chat"))


def test_a_csv_that_a_spreadsheet_saved_is_read(file):
    source = file(BIG5, "big5.csv")
    source.write_bytes(b"\xef\xbb\xbf" + source.read_bytes())
    assert len(read_chats(DataSpec(source=source, format="big5chat", part="all"))) == len(BIG5)


@pytest.mark.parametrize("form", ["statements", "big5chat", "chats"])
def test_a_missing_file_is_named(tmp_path, form):
    with pytest.raises(DataError, match=r"absent\.jsonl: "):
        read_chats(DataSpec(source=tmp_path / "absent.jsonl", format=form))


@pytest.mark.parametrize(
    ("rows", "form"), [(STATEMENTS, "statements"), (BIG5, "big5chat")], ids=["statements", "big5"]
)
def test_a_selection_of_nothing_is_refused(file, rows, form):
    spec = DataSpec(source=file(rows), format=form, pole=Pole("openness", "high"))
    with pytest.raises(DataError, match=r"data\.jsonl: (has )?no .*openness"):
        read_chats(spec)


def test_narrowing_keeps_a_pole_that_the_data_names(tmp_path):
    spec = DataSpec(source=tmp_path)
    assert spec.narrowed(HIGH).pole == HIGH
    assert spec.narrowed(HIGH).narrowed(LOW).pole == HIGH
    named = DataSpec(source=tmp_path / "{trait}-{level}", format="chats").narrowed(LOW)
    assert (named.source.name, named.pole) == ("extraversion-low", LOW)


def test_chats_that_name_a_pole_and_a_part_are_read_by_both(file):
    rows = [
        {"trait": "extraversion", "level": level, "part": part, "prompt": "Hi", "completion": said}
        for level, part, said in [
            ("high", "train", "I talk."),
            ("low", "train", "I rest."),
            ("high", "evaluate", "I sing."),
            ("high", "held_out", "I dance."),
        ]
    ] + [{"prompt": "Hi", "completion": "Anybody says this.", "part": "train"}]
    source = file(rows)

    def said(**given):
        return [chat[-1]["content"] for chat in read_chats(DataSpec(source=source, **given))]

    assert said(pole=HIGH) == ["I talk.", "Anybody says this."]
    assert said(part="evaluate", pole=HIGH) == ["I sing."]
    assert said(part="held_out") == ["I dance."]
    assert len(said(part="all")) == 5
    with pytest.raises(DataError, match=r"has no evaluate rows of extraversion:low"):
        said(part="evaluate", pole=LOW)
    rows[0]["level"] = "hihg"
    with pytest.raises(DataError, match=r"line 1: 'extraversion:hihg' is not a pole"):
        read_chats(DataSpec(source=file(rows), pole=HIGH))


def test_a_folder_of_elicited_chats_is_a_source(file, tmp_path):
    folder = tmp_path / "elicited"
    folder.mkdir()
    file([{"prompt": "Hi", "completion": "Hello."}]).rename(folder / "chats.jsonl")
    assert len(read_chats(DataSpec(source=folder, part="all"))) == 1
