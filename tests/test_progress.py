"""Progress: a bar on a terminal, a line a minute elsewhere, in bytes where sizes are known."""

import io
import itertools
import re

import pytest

from personality_vector import progress as module
from personality_vector.progress import progress

ITEMS = ["a" * 1000, "b" * 3000]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setattr(module, "_silenced", False)
    monkeypatch.setattr(module, "_last_line", 0.0)


@pytest.fixture
def drawn(monkeypatch):
    """Return ``drawn(items)``: the items, and what is drawn on a terminal while they are taken."""

    def take(items):
        with monkeypatch.context() as patch:
            stream = Terminal()
            patch.setattr("sys.stderr", stream)
            taken = list(items)
        return taken, stream.getvalue()

    return take


@pytest.fixture
def logged(monkeypatch):
    """Return ``logged(items, seconds)``: the lines of a log while each item takes ``seconds``."""

    def take(items, seconds):
        now = itertools.count(1000.0, seconds)
        with monkeypatch.context() as patch:
            stream = io.StringIO()
            patch.setattr("sys.stderr", stream)
            patch.setattr(module.time, "monotonic", lambda: current[0])
            current = [next(now)]
            for _ in items:
                current[0] = next(now)
        return stream.getvalue().splitlines()

    return take


def test_sizes_are_drawn_in_bytes(drawn):
    taken, text = drawn(progress(ITEMS, "merge", len))
    assert taken == ITEMS
    assert re.search(r"merge: *0%.* 0\.00/4\.00k", text)


def test_items_are_counted(drawn):
    taken, text = drawn(progress(ITEMS, "merge"))
    assert taken == ITEMS
    assert "0/2" in text


def test_a_bar_within_a_bar_draws_nothing(drawn):
    taken, text = drawn(x for _ in progress([1], "outer") for x in progress([1, 2], "inner"))
    assert taken == [1, 2]
    assert "outer" in text
    assert "inner" not in text


def test_a_log_gets_a_line_a_minute_that_says_when_it_ends(logged):
    lines = logged(progress(range(10), "measure"), 30)
    assert len(lines) == 5
    assert re.fullmatch(r"measure: 2 of 10; 0:04:00 left, until \w{3} \d\d:\d\d", lines[0])
    assert lines[-1].startswith("measure: 10 of 10; 0:00:00 left")


def test_a_line_counts_what_is_done_inside(logged):
    nested = (x for _ in progress(range(2), "measure") for x in progress(range(4), "ask"))
    lines = logged(nested, 60)
    assert lines[0].startswith("measure: 0 of 2, ask: 1 of 4; 0:07:00 left")
    assert lines[4].startswith("measure: 1 of 2, ask: 1 of 4; 0:03:00 left")


def test_a_line_counts_bytes_where_sizes_are_known(logged):
    lines = logged(progress(ITEMS, "merge", len), 60)
    assert lines[0].startswith("merge: 1.00kB of 4.00kB; 0:03:00 left")


def test_without_a_length_no_end_is_foretold(logged):
    assert logged(progress(iter(ITEMS), "read", len), 60) == ["read: 1.00kB", "read: 4.00kB"]


def test_a_short_job_logs_nothing_and_quiet_is_quiet(logged, monkeypatch):
    assert logged(progress(range(5), "measure"), 10) == []
    monkeypatch.setattr(module, "_silenced", True)
    assert logged(progress(range(5), "measure"), 100) == []


def test_a_loop_that_is_left_early_leaves_nothing_behind():
    loop = progress(range(5), "measure")
    next(loop)
    loop.close()
    assert module._loops == []
