"""Rubrics: what a judge is told of a trait, of a persona and of coherence."""

import pytest

from personality_vector.data.personas import Persona
from personality_vector.data.rubrics import COHERENCE, rubric_of
from personality_vector.lab import lab_folder
from personality_vector.recipes.reading import read_recipe
from personality_vector.subject.protocols import Rubric
from personality_vector.traits import BIG_FIVE, Pole


def shipped(name):
    return read_recipe(lab_folder() / f"training/steering/personas/{name}.yaml", Persona)


@pytest.mark.parametrize("trait", BIG_FIVE)
def test_the_big_five_are_described_as_their_personas(trait):
    rubric, persona = rubric_of(trait), shipped(trait)
    assert (rubric.trait, rubric.pole) == (trait, Pole(trait, "high"))
    assert (rubric.description, rubric.opposite) == (persona.description, persona.opposite)
    assert rubric.note == (persona.rubric or "")


def test_another_trait_has_a_name_and_a_pole():
    assert rubric_of("creativity") == Rubric("creativity", pole=Pole("creativity", "high"))
    assert rubric_of("coherence") is COHERENCE
    assert COHERENCE.pole is None


def test_the_upper_end_is_the_positive_side_of_a_persona():
    persona = shipped("extraversion").model_copy(update={"rubric": "Be fair."})
    high, low = persona.as_rubric(), persona.reversed().as_rubric()
    assert (high.trait, low.trait) == ("extraversion:high", "extraversion:low")
    assert (low.description, low.opposite) == (high.opposite, high.description)
    assert low.pole == high.pole.opposite
    assert high.note == low.note == "Be fair."
    role = shipped("futurist").as_rubric()
    assert (role.trait, role.opposite, role.note, role.pole) == ("futurist", None, "", None)
