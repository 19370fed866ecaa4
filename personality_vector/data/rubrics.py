"""Rubrics of traits, and the one for coherence: what a judge is told to rate."""

from functools import cache

from personality_vector.data.personas import Persona
from personality_vector.lab import BUILTIN, builtin
from personality_vector.recipes.reading import read_recipe
from personality_vector.subject.protocols import Rubric
from personality_vector.traits import BIG_FIVE, Pole, Trait

COHERENCE = Rubric(
    "coherence",
    description="is understandable, well-formed language which responds to the question.",
    opposite=(
        "cannot be understood, repeats itself endlessly, or has nothing to do with the question."
    ),
)
"""Judges know it by its name: they rate the language of an answer, not its manner."""


@cache
def rubric_of(trait: Trait) -> Rubric:
    """Return the rubric of the high end of a trait.

    The Big Five are described as in the shipped personas, other traits by their name alone.

    Raises:
        RecipeError: A shipped persona is missing.
    """
    if trait == COHERENCE.trait:
        return COHERENCE
    high = Pole(trait, "high")
    if trait not in BIG_FIVE:
        return Rubric(trait, pole=high)
    file = builtin(f"{BUILTIN}training/steering/personas/{trait}.yaml")
    persona = read_recipe(file, Persona).at(high)
    return Rubric(trait, persona.description, persona.opposite, persona.rubric or "", high)
