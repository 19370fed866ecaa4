"""Carrying out a steer recipe with a persona."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from personality_vector.checkpoint import Checkpoint
from personality_vector.elicitation.pipeline import Elicited, elicit, read_persona, unrecorded
from personality_vector.elicitation.rollouts import Rollout
from personality_vector.recipes.steering import SteerRecipe
from personality_vector.steering.apply import resolve_layers
from personality_vector.steering.vector import SteeringVector
from personality_vector.subject.models import load_model, load_tokenizer, resolve_device


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
        DataError: No pair of replies is left, or a layer is named twice.
        RecipeError: The persona, or what the judge needs, is missing or wrong.
        ModelError: A model cannot be loaded, or a layer is out of range.
    """
    persona = read_persona(recipe)
    checkpoint = Checkpoint.open(recipe.model)
    model = load_model(checkpoint.path, dtype=recipe.dtype, device=resolve_device(recipe.device))
    if recipe.layers is not None:
        resolve_layers(model, recipe.layers)  # refused now, not after hours of rollouts
    tokenizer = load_tokenizer(checkpoint.path)
    elicited = elicit(recipe, model, tokenizer, record=record)
    vector = SteeringVector.extract(
        model,
        tokenizer,
        elicited.positive,
        elicited.negative,
        layers=recipe.layers,
        pooling=recipe.pooling,
        estimator=recipe.estimator,
        batch_size=recipe.batch_size,
        pole=persona.pole,
        label=persona.label,
    )
    return replace(vector, model=checkpoint.fingerprint.digest, judge=elicited.judge), elicited
