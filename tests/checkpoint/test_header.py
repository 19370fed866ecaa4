"""A header is checked before any data is touched, and refused in one sentence."""

import time
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from personality_vector.checkpoint.tensors import DTYPES, read_header
from personality_vector.errors import CheckpointError


def row(start: int, end: int, dtype: str = "F32", shape: Any = None) -> dict[str, Any]:
    shape = [(end - start) // 4] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def refusal(file) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_header(file)
    assert str(caught.value).startswith(f"{file}: ")
    return str(caught.value).removeprefix(f"{file}: ")


def test_entries_say_where_each_tensor_lies(tmp_path):
    file, stored = (
        tmp_path / "x.safetensors",
        {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4)},
    )
    save_file(stored, file)
    entries, data = read_header(file), file.read_bytes()
    for name, tensor in stored.items():
        entry = entries[name]
        assert (entry.dtype, entry.shape) == (tensor.dtype, tuple(tensor.shape))
        assert data[entry.start : entry.end] == tensor.numpy().tobytes()


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_known_dtype_is_read(raw, name):
    size = DTYPES[name].itemsize
    assert read_header(raw({"a": row(0, 3 * size, name, [3])}, bytes(3 * size)))["a"].shape == (3,)


def test_a_missing_file_is_named(tmp_path):
    assert "No such file" in refusal(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("content", [b"", b"\x01", b"\x08\0\0\0\0\0\0", bytes(8)])
def test_a_file_without_a_header_is_refused(tmp_path, content):
    file = tmp_path / "model.safetensors"
    file.write_bytes(content)
    refusal(file)


@pytest.mark.parametrize("lost", [1, 8, 15, 16, 60])
def test_a_truncated_file_is_refused(raw, lost):
    file = raw({"a": row(0, 16)}, bytes(16))
    file.write_bytes(file.read_bytes()[:-lost])
    assert "truncated" in refusal(file)


def test_bytes_after_the_data_are_refused(raw):
    assert "should have" in refusal(raw({"a": row(0, 16)}, bytes(17)))


@pytest.mark.parametrize("length", [2**63 - 1, 2**64 - 1, 100_000_001, 300])
def test_a_huge_header_length_is_refused_unread(tmp_path, length):
    file = tmp_path / "model.safetensors"
    with file.open("wb") as stream:
        stream.write(length.to_bytes(8, "little"))
        stream.truncate(200_000_000 if length < 2**32 and length > 300 else 100)
    began = time.monotonic()
    assert f"claims {length} bytes" in refusal(file)
    assert time.monotonic() - began < 1.0


def test_a_git_lfs_pointer_says_how_to_fetch(tmp_path):
    file = tmp_path / "model.safetensors"
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12345\n")
    assert "git lfs pull" in refusal(file)


@pytest.mark.parametrize(
    ("table", "odd"),
    [
        ({"a": row(0, 8), "b": row(4, 12)}, "b"),
        ({"a": row(0, 4), "b": row(8, 12)}, "b"),
        ({"a": row(4, 12)}, "a"),
        ({"a": row(0, 12), "b": row(0, 12)}, "b"),
    ],
    ids=["overlap", "hole", "hole at the start", "twice the same place"],
)
def test_overlaps_and_holes_are_refused(raw, table, odd):
    assert f"tensor {odd} overlaps another or leaves a hole" in refusal(raw(table, bytes(12)))


def test_a_tensor_named_twice_is_refused(raw):
    one = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    assert "names the same tensor twice" in refusal(raw(b"{" + one + b"," + one + b"}", bytes(4)))


@pytest.mark.parametrize(
    "name", ["\x1b[2Ja", "a\nb", "../a", "a/b", "<b>", "", "a b", "é", "\0", "x" * 10_000]
)
def test_dangerous_names_are_refused_and_shown_harmlessly(raw, name):
    said = refusal(raw({name: row(0, 4)}, bytes(4)))
    assert said.isprintable()
    assert len(said) < 200


@pytest.mark.parametrize(
    "text",
    [b"{", b"\xff{}", b"[]", b"null", b'"a"', b"[" * 100_000, b'{"a":' * 50_000],
    ids=["cut", "utf-8", "list", "null", "string", "deep list", "deep table"],
)
def test_a_header_that_is_not_a_table_is_refused(raw, text):
    refusal(raw(text))


@pytest.mark.parametrize(
    "entry",
    [
        row(0, 4, "F8_E4M3", [4]),
        row(0, 4, "float32", [1]),
        {"dtype": "F32", "shape": [1]},
        {"dtype": "F32", "data_offsets": [0, 4]},
        {"shape": [1], "data_offsets": [0, 4]},
        {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 2, 4]},
        {"dtype": "F32", "shape": 1, "data_offsets": [0, 4]},
        row(0, 4, "F32", [2]),
        row(0, 4, "F32", [-1, -1]),
        row(0, 4, "F32", [1.0]),
        row(0, 4, "F32", [2**62, 2**62]),
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]},
        None,
        [0, 4],
        "F32",
    ],
)
def test_an_entry_that_contradicts_itself_is_refused_by_tensor(raw, entry):
    assert refusal(raw({"a": entry}, bytes(4))).startswith("tensor a: ")


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]},
        {"dtype": "F32", "shape": [1], "data_offsets": [None, 4]},
        row(0, 4, "F32", [[0], 10**15]),
        row(0, 4, "F32", ["a", 10**15]),
    ],
    ids=["text offsets", "no offset", "list in shape", "text in shape"],
)
def test_an_entry_of_wrong_types_is_refused_by_tensor(raw, entry):
    assert refusal(raw({"a": entry}, bytes(4))).startswith("tensor a: ")


def test_too_many_tensors_are_refused(raw):
    assert "at most 200000" in refusal(raw({f"t{i}": 0 for i in range(200_001)}))
