"""Carrying out a steer recipe: with data of both sides, or with a persona."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from personality_vector.checkpoint import Checkpoint
from personality_vector.data.chats import read_chats
from personality_vector.elicitation.pipeline import (
    Elicited,
    elicit,
    open_judge,
    read_persona,
    unrecorded,
)
from personality_vector.elicitation.recipe import SteerRecipe
from personality_vector.elicitation.rollouts import Rollout
from personality_vector.errors import RecipeError
from personality_vector.steering.apply import resolve_layers
from personality_vector.steering.vector import SteeringVector
from personality_vector.subject.chat import Chat
from personality_vector.subject.subject import Subject
from personality_vector.traits import Pole

_Sides = tuple[list[Chat], list[Chat]]
"""Positive and negative chats."""


def extract_recipe(recipe: SteerRecipe) -> SteeringVector:
    """Return the vector of a recipe with two sides of data, tied to its model by fingerprint.

    Raises:
        RecipeError: It is a recipe with a persona.
        DataError: A side cannot be read or selects nothing.
        ModelError: The model cannot be loaded, or a layer is out of range.
    """
    sides = read_sides(recipe)
    return _between(recipe, _loaded(recipe), sides, recipe.pole)


def extract_persona(
    recipe: SteerRecipe, *, record: Callable[[Sequence[Rollout]], object] = unrecorded
) -> tuple[SteeringVector, Elicited]:
    """Return the vector of a recipe with a persona, tied to its model, and what it was made from.

    The chats keep their system prompts: activations are read as the model had them when it
    replied.

    Args:
        recipe: With a persona.
        record: As in :func:`elicit`.

    Raises:
        DataError: No pair of replies is left, the judge cannot rate the persona, or a layer is
            named twice.
        RecipeError: The persona, or what the judge needs, is missing or wrong.
        ModelError: A model cannot be loaded, or a layer is out of range.
    """
    persona = read_persona(recipe)
    judge = open_judge(recipe, persona)
    subject = _loaded(recipe)
    if recipe.layers is not None:
        resolve_layers(subject.model, recipe.layers)  # refused now, not after hours of rollouts
    elicited = elicit(recipe, subject, judge, record=record)
    sides = elicited.positive, elicited.negative
    vector = _between(recipe, subject, sides, persona.pole, persona.label)
    return replace(vector, judge=elicited.judge), elicited


def read_sides(recipe: SteerRecipe) -> _Sides:
    """Return the positive and the negative chats of a recipe with two sides of data.

    Data without a pole of its own is narrowed: positive rows to the recipe's pole, negative ones
    to the opposite.

    Raises:
        RecipeError: It is a recipe with a persona.
        DataError: A side cannot be read or selects nothing.
    """
    if recipe.pole is None or recipe.positive is None or recipe.negative is None:
        raise RecipeError(
            "a steer recipe with a persona has no data to read: its sides are answers of the model"
        )
    positive = recipe.positive.narrowed(recipe.pole)
    negative = recipe.negative.narrowed(recipe.pole.opposite)
    return read_chats(positive), read_chats(negative)


def _loaded(recipe: SteerRecipe) -> Subject:
    return Subject.load(recipe.model, dtype=recipe.dtype, device=recipe.device)


def _between(
    recipe: SteerRecipe, subject: Subject, sides: _Sides, pole: Pole | None, label: str = ""
) -> SteeringVector:
    vector = SteeringVector.extract(
        subject.model,
        subject.tokenizer,
        *sides,
        layers=recipe.layers,
        pooling=recipe.pooling,
        estimator=recipe.estimator,
        batch_size=recipe.batch_size,
        pole=pole,
        label=label,
    )
    return replace(vector, model=Checkpoint.open(recipe.model).fingerprint.digest)
