"""Roles: what the prompt says, and the best of several."""

import pytest

from personality_vector.errors import DataError, NonFiniteError, RecipeError
from personality_vector.interventions.roles import (
    RolePrompt,
    SingleAgent,
    best_of,
    effect_on,
    role_prompts,
)
from personality_vector.subject.chat import answered, mean_log_likelihood, question
from personality_vector.subject.models import load_tokenizer

ROLES = ["a futurist", "an environmentalist", "a cook"]


def test_a_prompt_names_every_role_in_order_and_asks_for_one_answer():
    text = RolePrompt(ROLES).sentence(1.0)
    assert "a futurist, an environmentalist and a cook would" in text
    assert "one answer" in text
    assert RolePrompt(ROLES[::-1]).sentence(1.0) != text


def test_one_role_has_no_others_to_join():
    text = RolePrompt(["a futurist"]).sentence(1.0)
    assert text.startswith("You are a futurist.")
    assert "views" not in text


def test_zero_is_no_prompt_and_the_single_agent_never_has_one():
    assert RolePrompt(ROLES).sentence(0.0) == ""
    assert SingleAgent().sentence(0.0) == SingleAgent().sentence(1.0) == ""
    with SingleAgent().applied(None, 1.0) as edit:
        assert edit(question("Hi")) == question("Hi")


@pytest.mark.parametrize("prompt", [RolePrompt(ROLES), SingleAgent()])
@pytest.mark.parametrize("strength", [-1.0, 0.5, 2.0])
def test_another_strength_is_refused(prompt, strength):
    with pytest.raises(RecipeError, match="has the strengths 0 and 1"):
        prompt.sentence(strength)


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ([], "at least one role"),
        (["a cook", " "], "at least one role"),
        (["a cook"] * 2, "names a role twice"),
        ("a cook", r"roles are a list, such as \['a cook'\]"),
    ],
)
def test_roles_must_be_some_and_different(roles, message):
    with pytest.raises(DataError, match=message):
        RolePrompt(roles)


@pytest.mark.parametrize(("most", "count"), [(1, 3), (2, 6), (3, 7)])
def test_candidates_are_all_combinations(most, count):
    found = {frozenset(prompt.roles) for prompt in role_prompts(ROLES, most)}
    assert len(found) == count
    assert all(1 <= len(roles) <= most for roles in found)


def test_the_best_is_first_and_equals_keep_their_order():
    ranking = best_of(["a", "bbb", "cc", "ddd"], lambda word: float(len(word)))
    assert ranking.candidates == ("bbb", "ddd", "cc", "a")
    assert ranking.scores == (3.0, 3.0, 2.0, 1.0)
    assert ranking.best == "bbb"


def test_the_best_of_nothing_and_a_score_that_is_no_number_are_refused():
    with pytest.raises(DataError, match="at least one"):
        best_of([], float)
    with pytest.raises(NonFiniteError, match="roles a cook: has score nan"):
        best_of([RolePrompt(["a cook"])], lambda _: float("nan"))


def test_the_effect_is_that_of_the_edited_chat(pico, llama):
    tokenizer = load_tokenizer(pico("llama"))

    def likelihood(edit):
        chat = answered(edit(question("Hi")), "I am quiet")
        return float(mean_log_likelihood(llama, tokenizer, [chat]))

    def by_hand(prompt):
        opening = {"role": "system", "content": prompt.sentence(1.0)}
        return likelihood(lambda chat: [opening, *chat])

    prompts = role_prompts(ROLES, 2)
    ranking = best_of(prompts, effect_on(llama, likelihood))
    assert ranking.best == max(prompts, key=by_hand)
    assert list(map(by_hand, ranking.candidates)) == list(ranking.scores)
    assert len(set(ranking.scores)) == 6
