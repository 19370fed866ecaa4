"""Roles: what the prompt says, and which roles there can be."""

import pytest

from personality_vector.errors import DataError, RecipeError
from personality_vector.interventions.prompts import RolePrompt

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


@pytest.mark.parametrize("strength", [-1.0, 0.5, 2.0])
def test_another_strength_is_refused(strength):
    assert RolePrompt(ROLES).sentence(0.0) == ""
    with pytest.raises(RecipeError, match="has the strengths 0 and 1"):
        RolePrompt(ROLES).sentence(strength)


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
