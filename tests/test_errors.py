"""What is passed on of a library's message: one short line, without keys."""

import pytest

from personality_vector import errors
from personality_vector.errors import reason_of, redacted


def test_of_a_message_of_any_length_the_beginning_is_read(monkeypatch):
    read = []
    monkeypatch.setattr(errors, "redacted", lambda text: read.append(len(text)) or redacted(text))
    for said in (" " * 10**8, "x" * 10**8, "://a:b@c " * 10**7, "\n" * 10**8 + "the end"):
        found = reason_of(ValueError(said))
        assert len(found) <= 600
        assert "\n" not in found
        assert "a:b" not in found
    assert max(read) <= 1 << 16, "keys are not searched for in all of it"


def test_a_key_that_is_cut_in_two_is_not_shown(monkeypatch):
    key = "a-key-of-some-length" * 30
    monkeypatch.setenv("MY_KEY", key)
    assert "a-key" not in reason_of(ValueError(f"{key} " * 200))
    for before in (0, 550, 599):
        assert "a-key" not in reason_of(ValueError("x" * before + key)).removeprefix("x" * before)


@pytest.mark.parametrize("error", [KeyError("a"), TypeError("b"), ValueError("")])
def test_the_type_stands_where_the_text_says_too_little(error):
    assert reason_of(error).startswith(type(error).__name__)
