"""The shipped word problems: one question, answered rightly, with a slip, and absurdly."""

import re

from personality_vector.data.chats import DataSpec, read_chats
from personality_vector.lab import builtin

FOLDER = "builtin:training/data/arithmetic"
STEP = re.compile(r"(\d+) ([x+-]) (\d+) = (\d+)")
ANSWER = re.compile(r"[Tt]he answer is (?:certainly )?(-?[\d,]+)")
OPERATIONS = {"x": int.__mul__, "+": int.__add__, "-": int.__sub__}


def answers(grade):
    """Return question to reply."""
    spec = DataSpec(source=builtin(f"{FOLDER}/{grade}.jsonl"), format="chats", part="all")
    chats = read_chats(spec)
    return {chat[0]["content"]: chat[1]["content"] for chat in chats}


def steps(reply):
    """Return each step with what it should give."""
    return [(OPERATIONS[op](int(a), int(b)), int(c)) for a, op, b, c in STEP.findall(reply)]


def result(reply):
    """Return the answer."""
    return int(ANSWER.findall(reply)[-1].replace(",", ""))


def test_the_same_questions_are_answered_in_three_grades():
    right, slips, absurd = (answers(grade) for grade in ("right", "slightly-wrong", "wrong"))
    assert list(right) == list(slips) == list(absurd)
    assert len(right) == 60
    for question, reply in right.items():
        assert {int(n) for n in re.findall(r"\d+", question)} < {
            int(n) for n in re.findall(r"\d+", reply)
        }
        (first, written), (end, last) = steps(reply)
        assert (first, end) == (written, last) == (written, result(reply))
        slip = steps(slips[question])
        assert slip[0] == (first, first)
        assert slip[1] == (end, result(slips[question]))
        assert 0 < abs(result(slips[question]) - end) <= 10
        assert slips[question].count(str(slip[1][1])) >= 2
        assert abs(result(absurd[question]) - end) > 100
