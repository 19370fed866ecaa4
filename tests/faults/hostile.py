"""What may be wrong with a file: headers, trees, texts, templates and bytes that somebody broke."""

import json
import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

Dice = random.Random

_NUMBERS = [
    *(0, 1, 2, 3, 4, 8, 12, 16, -1, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 10**30, 10**400),
    *(0.0, 1.0, -0.5, 1e308, 5e-324, float("nan"), float("inf"), True, None),
]
_WORDS = [
    *(
        "",
        " ",
        "F32",
        "f32",
        "U8",
        "F8_E4M3",
        "high",
        "0",
        "1e3",
        "nan",
        "null",
        "\ud800",
        "é\u202e",
    ),
    *("\0", "\x1b[31m", "~nosuchuser/x", "../../x", "/dev/zero", "/etc/passwd", ".", "a" * 5000),
    *(
        "{seed}",
        "{trait}",
        "{0.__class__}",
        "%s",
        "a:b:c",
        "builtin:nothing",
        "me/not-there",
        "${X}",
    ),
    *("<script>alert(1)</script>", "auto", "cuda:7", "https://127.0.0.1:9/v1"),
]
_TREES: list[Any] = [
    *([], [0], [4], [2, 2], [[4]], [None], {}, {"a": 1}, {"": ""}, [2**63, 0], [2**62, 4, 0]),
    *([0, 2**63], [[]] * 50, {"a": {"b": {"c": [1, {"d": None}]}}}),
]
VALUES: list[Any] = [*_NUMBERS, *_WORDS, *_TREES]
_PIECES = [
    *(
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        '"',
        " ",
        "\n",
        "\t",
        "0",
        "-",
        "NaN",
        "\\u0000",
        "\ufeff",
        "\r",
    ),
    *(
        "\\ud800",
        "'",
        "#",
        "&a ",
        "*a",
        "<<: ",
        "!!float ''",
        "!!timestamp x",
        "? ",
        "---\n",
        "|\n",
    ),
    *(
        "!!python/object/apply:os.system [x]",
        "2026-13-45",
        "1:60:60",
        "0o9",
        "~",
        "\x00",
        "\x85",
        "%",
    ),
    *("{{ 1/0 }}", "{% for i in range(10**9) %}x{% endfor %}", "é", "🙂", "x" * 3000, "[" * 3000),
]


def tree(dice: Dice, value: Any) -> Any:
    """Return a JSON tree with one to three of its parts replaced, removed, renamed or nested."""
    value = deepcopy(value)
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        places = list(_places(value))
        if not places:
            return deepcopy(dice.choice(VALUES))
        holder, key = dice.choice(places)
        what = dice.random()
        if what < 0.1:
            del holder[key]
        elif what < 0.2 and isinstance(holder, dict):
            holder[_key(dice, key)] = deepcopy(dice.choice([holder[key], *VALUES[:9]]))
        elif what < 0.2:
            holder.append(deepcopy(dice.choice(VALUES)))
        else:
            holder[key] = _other(dice, holder[key])
    return value


def _other(dice: Dice, value: Any) -> Any:
    what = dice.random()
    if what < 0.05:
        return [value] * dice.choice([1, 2, 40])
    if what < 0.1:
        return _deep(value, dice.choice([1, 3, 90, 200]))
    if what < 0.2 and isinstance(value, str):
        return text(dice, value)
    return deepcopy(dice.choice(VALUES))


def _places(value: Any) -> Any:
    keys = value if isinstance(value, dict) else range(len(value)) if _is_list(value) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and len(value) < 300


def _deep(value: Any, levels: int) -> Any:
    for _ in range(levels):
        value = {"a": value} if levels % 2 else [value]
    return value


def _key(dice: Dice, key: Any) -> str:
    return dice.choice([f"{key} ", f"{key}s", str(key).upper(), "", "extra", "__class__", "\n"])


def text(dice: Dice, whole: str) -> str:
    """Return a text with pieces inserted, or with a part removed or repeated."""
    for _ in range(dice.choice([1, 1, 2, 4])):
        start, end = sorted((dice.randint(0, len(whole)), dice.randint(0, len(whole))))
        what = dice.random()
        if what < 0.6:
            whole = whole[:start] + dice.choice(_PIECES) + whole[start + dice.randint(0, 2) :]
        elif what < 0.8:
            whole = whole[:start] + whole[min(end, start + dice.choice([1, 5, 10**6])) :]
        else:
            whole = whole[:end] + whole[start:end][:2000] * dice.choice([1, 2, 8]) + whole[end:]
    return whole


def encoded(whole: str) -> bytes:
    """Return a text as UTF-8, with whatever UTF-8 forbids."""
    return whole.encode(errors="surrogatepass")


def json_file(dice: Dice, data: bytes) -> bytes:
    """Return a file of JSON with parts of it changed, and sometimes its text too."""
    changed = dump(dice, tree(dice, json.loads(data)))
    return encoded(text(dice, changed) if dice.random() < 0.25 else changed)


def dump(dice: Dice, value: Any) -> str:
    """Return a tree as JSON, which is YAML too, in one of its spellings."""
    return json.dumps(value, ensure_ascii=dice.random() < 0.5, indent=dice.choice([None, 1]))


def lines_file(dice: Dice, data: bytes) -> bytes:
    """Return a file of JSON lines with one or two of them changed."""
    lines = data.decode().splitlines(keepends=True)
    for _ in range(dice.choice([1, 1, 2])):
        at = dice.randrange(len(lines))
        row = lines[at]
        lines[at] = row if not row.strip() else _line(dice, row)
    return encoded("".join(lines))


def _line(dice: Dice, row: str) -> str:
    if dice.random() < 0.6:
        try:
            return dump(dice, tree(dice, json.loads(row))).replace("\n", " ") + "\n"
        except ValueError:
            pass
    return text(dice, row)


def text_file(dice: Dice, data: bytes) -> bytes:
    """Return a file of text with its text changed."""
    return encoded(text(dice, data.decode()))


def binary_file(dice: Dice, data: bytes) -> bytes:
    """Return a file with bits flipped, bytes replaced, or a part removed, repeated or zeroed."""
    for _ in range(dice.choice([1, 1, 2, 6])):
        near = len(data) if dice.random() < 0.5 else min(len(data), 600)  # headers come first
        start = dice.randrange(near + 1)
        width = dice.choice([1, 1, 4, 8, 64, 10**9])
        piece = data[start : start + width]
        what = dice.random()
        if what < 0.3:
            piece = bytes(byte ^ (1 << dice.randrange(8)) for byte in piece[:8]) + piece[8:]
        elif what < 0.6:
            piece = dice.choice([b"\xff", b"\0", b"\x80", b"\x7f"]) * len(piece[:64]) + piece[64:]
        elif what < 0.8:
            piece = b""
        else:
            piece *= 2
        data = data[:start] + piece + data[start + width :]
    return data


def table(dice: Dice) -> dict[str, Any]:
    """Return the table of a safetensors header that is right, of a few tensors."""
    rows: dict[str, Any] = {"__metadata__": {"format": "pt"}} if dice.random() < 0.5 else {}
    at = 0
    for name in dice.sample(["a", "b", "model.x", "w-1", "z_2"], dice.randint(1, 4)):
        dtype, width = dice.choice([("F32", 4), ("BF16", 2), ("I64", 8), ("BOOL", 1)])
        shape = dice.choice([[], [1], [2, 2], [3], [0], [0, 5], [1, 1, 4]])
        size = width
        for side in shape:
            size *= side
        rows[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return rows


def safetensors_file(dice: Dice, _: bytes = b"") -> bytes:
    """Return a small safetensors file with something wrong in its header, or with nothing wrong."""
    rows = table(dice)
    data = max(
        (row["data_offsets"][1] for row in rows.values() if "data_offsets" in row), default=0
    )
    if dice.random() < 0.7:
        rows = tree(dice, rows)
    head = encoded(dump(dice, rows))
    for _ in range(dice.choice([0, 0, 1, 2])):
        at = dice.randint(0, len(head))
        head = head[:at] + encoded(dice.choice(_PIECES[:16])) + head[at + dice.randint(0, 2) :]
    head += b" " * dice.choice([0, 0, 3, 8])
    length = len(head) + dice.choice([0, 0, 0, 0, 0, 1, -1, 2**40])
    return (
        max(length, 0).to_bytes(8, "little")
        + head
        + bytes(max(0, data + dice.choice([0, 0, 0, 0, 0, 1, -1])))
    )


def template_file(dice: Dice, data: bytes) -> bytes:
    """Return a chat template that is broken, wasteful or endless, or one with its text changed."""
    if dice.random() < 0.4:
        return text_file(dice, data)
    return encoded("".join(_statement(dice, 3) for _ in range(dice.randint(1, 3))))


def _statement(dice: Dice, depth: int) -> str:
    if depth == 0 or dice.random() < 0.4:
        return "{{ " + _expression(dice, 2) + " }}"
    body = _statement(dice, depth - 1)
    return dice.choice(
        [
            f"{{% for m in messages %}}{{{{ m.content }}}}{body}{{% endfor %}}",
            f"{{% for i in range({_expression(dice, 1)}) %}}{body}{{% endfor %}}",
            f"{{% if {_expression(dice, 2)} %}}{body}{{% else %}}b{{% endif %}}",
            f"{{% set x = {_expression(dice, 2)} %}}{body}",
            f"{{% macro f(x) %}}{body}{{{{ f(x) }}}}{{% endmacro %}}{{{{ f(1) }}}}",
            "{% generation %}" + body + "{% endgeneration %}",
        ]
    )


_CALLS = ["__class__", "content", "items()", "ljust(10**9)", "format(x)"]
_FILTERS = ["tojson", "length", "upper", "list", "center(10**8)", "nothing"]


def _expression(dice: Dice, depth: int) -> str:
    if depth == 0:
        return dice.choice(
            ["messages", "x", "'x'", "5", "10**9", "messages[0].content", "none", "bos_token"]
        )
    one, two = _expression(dice, depth - 1), _expression(dice, depth - 1)
    operator = dice.choice(["+", "*", "**", "~", "/", "%", "in", "and"])
    return dice.choice(
        [
            f"({one} {operator} {two})",
            f"{one}.{dice.choice(_CALLS)}",
            f"{one} | {dice.choice(_FILTERS)}",
            f"raise_exception({one})",
            f"range({one})",
        ]
    )


Change = Callable[[Dice, bytes], bytes]
