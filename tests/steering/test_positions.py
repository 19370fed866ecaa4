"""Clauses: what they mean, how they are written, and what is refused."""

from math import inf

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from personality_vector.errors import DataError, RecipeError
from personality_vector.steering import ALL, Positions
from personality_vector.subject.models import load_tokenizer
from personality_vector.subject.prompts import Prompts

IDS = torch.tensor([[0, 0, 7, 9, 7, 5], [4, 7, 5, 5, 5, 5]])
PROMPTS = Prompts((2, 0), (5, 3), IDS)


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        ("all", ([(2, inf)], [(0, inf)])),
        ("prompt", ([(2, 5)], [(0, 3)])),
        ("response", ([(5, inf)], [(3, inf)])),
        ("last 2", ([(3, 5)], [(1, 3)])),
        ("last 9", ([(2, 5)], [(0, 3)])),
        ("last 1 + response", ([(4, 5), (5, inf)], [(2, 3), (3, inf)])),
        ("after 7", ([(5, inf)], [(2, inf)])),
    ],
)
def test_what_a_clause_means(clause, expected):
    found = tuple(list(Positions.parse(clause).spans(PROMPTS, row)) for row in range(2))
    assert found == expected


def test_after_takes_the_last_mark_of_the_prompt_and_none_of_the_response():
    prompts = Prompts((0,), (3,), torch.tensor([[7, 1, 7, 1, 7]]))
    assert Positions.parse("after 7").spans(prompts, 0) == ((3, inf),)


@given(
    st.lists(
        st.one_of(
            st.sampled_from(["all", "prompt", "response"]),
            st.integers(1, 99).map(lambda n: f"last {n}"),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_a_clause_is_read_as_it_is_written(parts):
    text = " + ".join(parts)
    assert str(Positions.parse(text)) == text
    assert Positions.parse(text.replace(" + ", "+")) == Positions.parse(text)


def test_token_zero_is_a_token():
    assert str(Positions.parse("after 0")) == "after 0"


@pytest.mark.parametrize(
    "text",
    ["", "last 0", "last", "last -1", "first 2", "after", "after ", "all + ", "ALL", "last x"],
)
def test_a_clause_that_selects_nothing_is_refused(text):
    with pytest.raises(RecipeError, match="cannot be read; a clause is all, prompt, response"):
        Positions.parse(text)


def test_a_mark_that_a_prompt_does_not_hold_is_refused():
    with pytest.raises(DataError, match="the prompt of row 1 lacks it"):
        Positions.parse("after 9").spans(PROMPTS, 1)


def test_a_mark_among_the_padding_does_not_count():
    prompts = Prompts((2,), (4,), torch.tensor([[7, 7, 1, 1]]))
    with pytest.raises(DataError, match="lacks it"):
        Positions.parse("after 7").spans(prompts, 0)


def test_a_mark_needs_token_ids():
    with pytest.raises(DataError, match="no token ids"):
        Positions.parse("after 7").spans(Prompts((0,), (3,)), 0)


def test_an_empty_prompt_has_nothing_to_steer():
    with pytest.raises(DataError, match="row 0 has an empty prompt"):
        Positions.parse("prompt").spans(Prompts((0,), (0,)), 0)


def test_a_mark_is_given_as_text_where_there_is_a_tokenizer(pico):
    tokenizer = load_tokenizer(pico("llama"))
    mark = tokenizer.convert_tokens_to_ids("<|assistant|>")
    assert str(Positions.parse("after <|assistant|>", lambda: tokenizer)) == f"after {mark}"
    with pytest.raises(RecipeError, match="makes 2 tokens of it"):
        Positions.parse("after <|user|><|end|>", lambda: tokenizer)
    with pytest.raises(RecipeError, match="without a tokenizer, give the token's id"):
        Positions.parse("after <|assistant|>")


@pytest.mark.parametrize(
    ("text", "needed"),
    [("all", False), ("after 7", False), ("after I", True), ("last 1 + after I", True)],
)
def test_the_tokenizer_is_fetched_only_for_a_clause_that_needs_it(pico, text, needed):
    fetched = []

    def fetch():
        fetched.append(load_tokenizer(pico("llama")))
        return fetched[0]

    found = Positions.parse(text, fetch)
    assert bool(fetched) is needed
    assert Positions.parse(found, fetch) == found


def test_the_kinds_of_a_clause():
    assert ALL.kinds == {"all"}
    assert Positions.parse("response").kinds == {"response"}
    assert Positions.parse("last 1 + response").kinds == {"last", "response"}
