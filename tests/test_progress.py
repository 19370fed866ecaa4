"""The bar: silent away from a terminal, in bytes where sizes are known."""

import io
import re

import pytest

from personality_vector import progress as module
from personality_vector.progress import progress

ITEMS = ["a" * 1000, "b" * 3000]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def drawn(monkeypatch):
    """Return ``drawn(items)``: the items, and what is drawn on a terminal while they are taken."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(module, "_silenced", False)

    def take(items):
        with monkeypatch.context() as patch:
            stream = Terminal()
            patch.setattr("sys.stderr", stream)
            taken = list(items)
        return taken, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())

    return take


def test_sizes_are_drawn_in_bytes(drawn):
    taken, text = drawn(progress(ITEMS, "merge", len))
    assert taken == ITEMS
    assert "4.0/4.0 kB" in text
    assert "2/2" not in text


def test_without_sizes_items_are_counted(drawn):
    taken, text = drawn(progress(ITEMS, "merge"))
    assert taken == ITEMS
    assert "2/2" in text
    assert "kB" not in text


def test_without_a_length_the_total_is_unknown(drawn):
    taken, text = drawn(progress(iter(ITEMS), "merge", len))
    assert taken == ITEMS
    assert "4.0/? kB" in text


def test_a_bar_within_a_bar_draws_nothing(drawn):
    taken, text = drawn(x for _ in progress([1], "outer") for x in progress([1, 2], "inner"))
    assert taken == [1, 2]
    assert "outer" in text
    assert "inner" not in text


def test_no_terminal_no_bar(capsys):
    assert list(progress(ITEMS, "merge", len)) == ITEMS
    assert capsys.readouterr() == ("", "")
