"""Kinds of data files: the same rows from each, and how a file that is none of them is refused."""

import csv
import json

import pytest

from personality_vector.data.chats import DataSpec, read_chats, select_chats
from personality_vector.data.rows import raw_rows
from personality_vector.data.statements import read_statements
from personality_vector.errors import DataError, PersonalityVectorError

ROWS = [
    {"trait": "openness", "level": "high", "statement": f"I, \u201cme\u201d,\r\nthink; {n}\t'so'"}
    for n in range(3)
]


def write_table(path, rows=ROWS, encoding="utf-8", **how):
    with path.open("w", newline="", encoding=encoding) as stream:
        writer = csv.DictWriter(stream, list(rows[0]), **how)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_array(path):
    path.write_text("\n " + json.dumps(ROWS, indent=1), encoding="utf-8-sig")


def write_parquet(path, rows=ROWS):
    from pyarrow import Table, parquet

    parquet.write_table(Table.from_pylist(rows), path)


WRITERS = {
    "data.jsonl": lambda path: path.write_text("\n\n".join(map(json.dumps, ROWS))),
    "data": lambda path: path.write_text("\n".join(map(json.dumps, ROWS))),
    "data.json": write_array,
    "data.csv": write_table,
    "DATA.CSV": lambda path: write_table(path, encoding="utf-8-sig", quoting=csv.QUOTE_ALL),
    "data.tsv": lambda path: write_table(path, delimiter="\t"),
    "data.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file_has_the_same_rows(tmp_path, name):
    path = tmp_path / name
    WRITERS[name](path)
    assert list(raw_rows(path).values()) == ROWS
    assert [each.text for each in read_statements(path)] == [row["statement"] for row in ROWS]


def test_messages_of_a_parquet_file_are_chats(tmp_path):
    chat = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho."}]
    write_parquet(tmp_path / "data.parquet", [{"messages": chat}, {"messages": None}])
    assert read_chats(DataSpec(source=tmp_path / "data.parquet", part="all")) == [chat]


def test_a_cell_may_be_long(tmp_path):
    rows = [{**ROWS[0], "statement": "x " * 100_000}]
    assert list(raw_rows(write_table(tmp_path / "data.csv", rows)).values()) == rows
    assert csv.field_size_limit() < 1 << 18


HEADER = "trait,level,statement\n"
BAD = {
    "text.txt": ("I like tea.", "its name should end with .jsonl, .json, .csv, .tsv, .parquet"),
    "a.jsonl.gz": (b"\x1f\x8b\x08\x00", "its name should end with"),
    "a.json": ('[{"trait": 1},', "is not a JSON array"),
    "b.json": ("[1]", "row 1: should be one JSON object"),
    "a.csv": (HEADER + 'openness,high,"I like\nopenness,low,x\n', "is not closed before the end"),
    "b.csv": (HEADER + "openness,high,I like tea, rain\n", "line 2: has more cells than the 3"),
    "c.csv": (HEADER.replace(",", ";"), "its columns are separated by ';'; save it with ','"),
    "d.csv": ("trait,statement\n\u201cx\u201d,y\n".encode("cp1252"), "save it as UTF-8"),
    "a.parquet": (b"PAR1 and no more", "cannot be read as Parquet"),
    "b.parquet": ("version https://git-lfs.github.com/spec/v1\n", "run `git lfs pull`"),
    "e.csv": ("prompt,completion, completion\na,b,c\n", "two columns with the name completion"),
    "c.json": (
        '{\n"data": [{"prompt": "Hi"}]\n}',
        r"is one JSON object with the keys data; give the",
    ),
    "d.json": ('["I like tea."]', 'row 1: should be one JSON object, not "I like tea."'),
    "a.jsonl": (
        '{"statement": "\u201c"}'.encode("cp1252"),
        "line 1: is not UTF-8: .*save it as UTF-8",
    ),
    "b.jsonl": ('{"prompt": "Hi", "completion": "\\ud83d"}', "line 1: holds half of a surrogate"),
    "c.jsonl": (b"\xff\xfe{\x00\x00", "cannot be read as UTF-16; save it as UTF-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_of_no_known_kind_or_a_damaged_one_is_refused(tmp_path, name):
    content, complaint = BAD[name]
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=complaint) as refusal:
        read_chats(DataSpec(source=path))
    assert str(refusal.value).startswith(str(path))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_marked_texts_with_the_line_ends_of_windows_are_read(tmp_path, name, encoding):
    write_table(tmp_path / "plain.csv", ROWS)
    texts = {
        ".jsonl": "".join(json.dumps(row) + "\n" for row in ROWS),
        ".json": json.dumps(ROWS, indent=1),
        ".csv": (tmp_path / "plain.csv").read_text().replace(",", ", ", 2),  # in the header
    }
    text = texts[(tmp_path / name).suffix].replace("\r", "").replace("\n", "\r\n")
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert list(raw_rows(tmp_path / name).values()) == ROWS


def test_cells_of_nan_and_blank_rows_are_empty(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"prompt": null, "completion": " "}\n{"prompt": "Hi", "completion": NaN}\n'
        '{"prompt": "Hi", "completion": "Ho"}\n'
    )
    found = select_chats(DataSpec(source=tmp_path / "a.jsonl", part="all"))
    assert (len(found.chats), found.dropped) == (1, {"empty": 2})
    table = "trait,level,train_input,train_output\n,,,\nopenness,high,Hi,Ho\n"
    (tmp_path / "a.csv").write_text(table)
    assert select_chats(DataSpec(source=tmp_path / "a.csv", part="all")).dropped == {"empty": 1}
    (tmp_path / "b.csv").write_text("trait,level,statement,part\nopenness,high,I think,\n")
    assert [one.text for one in read_statements(tmp_path / "b.csv")] == ["I think"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.json"])
def test_a_file_without_a_row_is_refused(tmp_path, name):
    (tmp_path / name).write_text(" \n" if name != "a.csv" else HEADER)
    for form in ("statements", "big5chat", "chats", None):
        with pytest.raises(DataError, match=r"no rows at all|has no rows"):
            read_chats(DataSpec(source=tmp_path / name, format=form, part="all"))


def test_a_directory_of_several_files_is_refused_by_their_names(tmp_path):
    for name in ("b.csv", "a.parquet", "README.md"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"is a directory; give one .* such as a\.parquet, b\.csv$"):
        read_chats(DataSpec(source=tmp_path, format="chats"))


def test_a_file_of_too_many_rows_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("personality_vector.data.rows._MOST_ROWS", 2)
    write_parquet(tmp_path / "data.parquet")
    with pytest.raises(DataError, match="has more than 2 rows"):
        raw_rows(tmp_path / "data.parquet")


@pytest.fixture
def hub(monkeypatch):
    """Serve ``ROWS`` as the data set of any id, and return what it was asked for."""
    import datasets

    asked = []

    def load(path, name=None, *, split, revision):
        asked.append((path, name, split, revision))
        if path == "nobody/nothing":
            raise ConnectionError("the Hub cannot be\nreached")
        return datasets.Dataset.from_list(ROWS)

    monkeypatch.setattr(datasets, "load_dataset", load)
    return asked


def test_a_data_set_of_the_hub_is_named_by_its_id(hub, tmp_path):
    spec = {"source": "some-one/big.five", "part": "all"}
    chats = read_chats(DataSpec.parse(spec, origin="r.yaml", folder=tmp_path))
    assert [chat[-1]["content"] for chat in chats] == [row["statement"] for row in ROWS]
    more = spec | {"config": "en", "split": "test[:10%]", "revision": "a1", "format": "statements"}
    recipe = DataSpec.parse(more, origin="r.yaml", folder=tmp_path)
    assert len(read_chats(recipe)) == len(chats)
    whole, part = (spec["source"], None, "train", None), (spec["source"], "en", "test[:10%]", "a1")
    assert set(hub) == {whole, part}
    assert recipe.model_dump(mode="json").items() >= more.items()


@pytest.mark.usefixtures("hub")
def test_a_data_set_that_is_nowhere_is_refused_in_one_sentence(tmp_path):
    spec = DataSpec.parse({"source": "nobody/nothing"}, origin="r.yaml", folder=tmp_path)
    wanted = r"^nobody/nothing: is not a file here, and cannot be .*: the Hub cannot be reached$"
    with pytest.raises(DataError, match=wanted):
        read_chats(spec)


def test_what_is_there_or_named_like_a_file_is_a_file(tmp_path):
    (tmp_path / "some-one").mkdir()
    (tmp_path / "some-one" / "rows").touch()
    for source in ("some-one/rows", "some-one/data.csv", "rows"):
        spec = DataSpec.parse({"source": source}, origin="r.yaml", folder=tmp_path)
        assert spec.source == tmp_path / source
        assert set(spec.model_dump()).isdisjoint({"config", "split", "revision", "drop"})
    with pytest.raises(PersonalityVectorError, match="config, split and revision are of a data"):
        DataSpec.parse({"source": "rows", "split": "x"}, origin="r.yaml", folder=tmp_path)
