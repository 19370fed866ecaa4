"""Carrying out a steer recipe."""

from dataclasses import replace

from personality_vector.checkpoint import Checkpoint
from personality_vector.data.chats import read_chats
from personality_vector.errors import RecipeError
from personality_vector.recipes.steering import SteerRecipe
from personality_vector.steering.vector import SteeringVector
from personality_vector.subject.chat import Chat
from personality_vector.subject.models import load_model, load_tokenizer, resolve_device


def extract_recipe(recipe: SteerRecipe) -> SteeringVector:
    """Return the vector of a recipe with two sides of data, tied to its model by fingerprint.

    Raises:
        RecipeError: It is a recipe with a persona.
        DataError: A side cannot be read or selects nothing.
        ModelError: The model cannot be loaded, or a layer is out of range.
    """
    positive, negative = read_sides(recipe)
    checkpoint = Checkpoint.open(recipe.model)
    device = resolve_device(recipe.device)
    vector = SteeringVector.extract(
        load_model(checkpoint.path, dtype=recipe.dtype, device=device),
        load_tokenizer(checkpoint.path),
        positive,
        negative,
        layers=recipe.layers,
        pooling=recipe.pooling,
        estimator=recipe.estimator,
        batch_size=recipe.batch_size,
        pole=recipe.pole,
    )
    return replace(vector, model=checkpoint.fingerprint.digest)


def read_sides(recipe: SteerRecipe) -> tuple[list[Chat], list[Chat]]:
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
