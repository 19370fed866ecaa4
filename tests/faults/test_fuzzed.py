"""Commands that are given what somebody broke; ``tests/faults/fuzzed.py`` tries far more."""

from collections import Counter

import pytest

from tests.faults.fuzzed import BYTES, SECONDS, Answer, Lab, headers, others, recipes

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("fuzzed") / "lab")


def require_lawful(tried, least):
    """Every law holds, and the fuzzer made both what is refused and what is not."""
    codes = Counter()
    for name, answer, content in tried:
        assert not answer.fault(), (name, content)
        codes[answer.code] += 1
    assert codes[0] >= least
    assert codes[1] >= least


def test_what_nobody_broke_is_accepted(lab):
    lab.require_whole()


def test_headers(tmp_path):
    require_lawful(headers(tmp_path, 1000, seed=1), 50)


def test_recipes(lab):
    require_lawful(recipes(lab, 72, seed=2), 2)
    assert lab.content() == lab.whole


def test_files_of_every_other_kind(lab):
    require_lawful(others(lab, len(lab.doors()), seed=1), 5)
    assert lab.content() == lab.whole


@pytest.mark.parametrize(
    ("answer", "word"),
    [
        (Answer("KeyError: 'x'", "", 0, 0), "KeyError"),
        (Answer(1, "Traceback (most recent call last)\nerror: x\n", 0, 0), "said"),
        (Answer(1, "", 0, 0), "said"),
        (Answer(1, "error: x\nerror: y\n", 0, 0), "said"),
        (Answer(0, "\x1b[31m", 0, 0), "control"),
        (Answer(0, "", 2 * SECONDS, 0), "took"),
        (Answer(0, "", 0, 2 * BYTES), "took"),
        (Answer(1, "error: x\n", 0, 0), ""),
    ],
)
def test_a_broken_law_is_seen(answer, word):
    assert bool(word) == bool(answer.fault())
    assert word in answer.fault()
