"""What the reader of safetensors refuses, ours refuses: a fuzzer over headers."""

import json
import random
from copy import deepcopy
from pathlib import Path

import pytest
from safetensors import SafetensorError, safe_open

from personality_vector.errors import CheckpointError
from personality_vector.files.header import read_table

ROUNDS = 3000
_VALUES = [
    *(0, 1, 2, 3, 4, 8, 12, 16, -1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, 1.0, 0.0),
    *(True, None, "", "F32", "f32", "U8", "F8_E4M3", "C64", "\ud800", "é", [], [0], [4], [2, 2]),
    *([2**63, 0], [2**62, 4, 0], [0, 2**63], [[4]], {}, {"a": 1}, float("nan"), 1e400),
]
_TEXTS = ["{", "}", "[", "]", ",", ":", '"', " ", "\n", "\t", "0", "-", "NaN", "\\u0000", "\ufeff"]


def valid(dice: random.Random) -> dict[str, object]:
    """Return a header that is right, of a few tensors."""
    table: dict[str, object] = {"__metadata__": {"format": "pt"}} if dice.random() < 0.5 else {}
    at = 0
    for name in dice.sample(["a", "b", "model.x", "w-1", "z_2"], dice.randint(1, 4)):
        dtype, width = dice.choice([("F32", 4), ("BF16", 2), ("I64", 8), ("BOOL", 1)])
        shape = dice.choice([[], [1], [2, 2], [3], [0], [0, 5], [1, 1, 4]])
        size = width
        for side in shape:
            size *= side
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return table


def mutated(dice: random.Random, table: dict[str, object]) -> bytes:
    """Return a header with something wrong in it, as the bytes of a file."""
    data = max(
        (row["data_offsets"][1] for row in table.values() if "data_offsets" in row), default=0
    )
    for _ in range(dice.randint(0, 2)):
        name = dice.choice(list(table))
        row = table[name]
        what = dice.random()
        if not isinstance(row, dict) or what < 0.1:
            table[name] = deepcopy(dice.choice(_VALUES))
        elif what < 0.6 and row:
            key = dice.choice(list(row))
            row[key] = deepcopy(dice.choice(_VALUES))
        elif what < 0.7 and row:
            del row[dice.choice(list(row))]
        elif what < 0.8:
            row[dice.choice(["extra", "dtype ", "shape"])] = deepcopy(dice.choice(_VALUES))
        elif isinstance(row.get("data_offsets"), list) and row["data_offsets"]:
            offsets = row["data_offsets"]
            offsets[dice.randrange(len(offsets))] = deepcopy(dice.choice(_VALUES))
    text = json.dumps(table, ensure_ascii=dice.random() < 0.5).encode(errors="surrogatepass")
    for _ in range(dice.choice([0, 0, 1, 2])):
        at = dice.randint(0, len(text))
        piece = dice.choice(_TEXTS).encode()
        text = text[:at] + piece + text[at + dice.randint(0, 2) :]
    text += b" " * dice.choice([0, 0, 3, 8])
    length = len(text) + dice.choice([0, 0, 0, 0, 0, 1, -1, 2**40])
    head = max(length, 0).to_bytes(8, "little")
    return head + text + bytes(max(0, data + dice.choice([0, 0, 0, 0, 0, 1, -1])))


def refuses(file: Path) -> bool:
    try:
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118  (it is not a mapping)
                opened.get_slice(name).get_shape()
    except (SafetensorError, OverflowError, ValueError, OSError):
        return True
    return False


def refusal(file: Path) -> str:
    """Return what we say about a file, or nothing."""
    try:
        read_table(file)
    except CheckpointError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("seed", range(3))
def test_a_header_that_safetensors_refuses_is_refused_in_one_sentence(tmp_path, seed):
    dice, file, said = random.Random(seed), tmp_path / "x.safetensors", []
    for number in range(ROUNDS // 3):
        content = mutated(dice, valid(dice))
        file.write_bytes(content)
        said.append(refusal(file))
        assert said[-1] or not refuses(file), (number, content)
    found = list(filter(None, said))
    assert all(text.startswith(f"{file}: ") and "\n" not in text for text in found)
    assert 0.3 < len(found) / len(said) < 0.95  # the fuzzer finds both
