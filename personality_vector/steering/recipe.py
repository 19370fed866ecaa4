"""Carrying out a steer recipe."""

from dataclasses import replace

from personality_vector.checkpoint import Checkpoint
from personality_vector.data import read_chats
from personality_vector.models import load_model, load_tokenizer, resolve_device
from personality_vector.recipes import SteerRecipe
from personality_vector.steering.vector import SteeringVector


def extract_recipe(recipe: SteerRecipe) -> SteeringVector:
    """Return the vector of ``recipe``, tied to its model by fingerprint.

    Data without a pole of its own is narrowed: positive rows to the recipe's pole, negative ones
    to the opposite.

    Raises:
        DataError: A side cannot be read or selects nothing.
        ModelError: The model cannot be loaded, or a layer is out of range.
    """
    positive = read_chats(recipe.positive.narrowed(recipe.pole))
    negative = read_chats(recipe.negative.narrowed(recipe.pole.opposite))
    checkpoint = Checkpoint.open(recipe.model)
    device = resolve_device(recipe.device)
    vector = SteeringVector.extract(
        load_model(checkpoint.path, dtype=recipe.dtype, device=device),
        load_tokenizer(checkpoint.path),
        positive,
        negative,
        layers=recipe.layers,
        batch_size=recipe.batch_size,
        pole=recipe.pole,
        label=str(recipe.pole),
    )
    return replace(vector, model=checkpoint.fingerprint.digest)
