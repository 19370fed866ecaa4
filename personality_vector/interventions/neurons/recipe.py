"""Carrying out a steer recipe for neurons: the two sides of data that a vector would read."""

from dataclasses import replace

from personality_vector.checkpoint import Checkpoint
from personality_vector.elicitation.extract import read_sides
from personality_vector.elicitation.recipe import SteerRecipe
from personality_vector.errors import RecipeError, some
from personality_vector.interventions.neurons.chosen import NeuronSet
from personality_vector.interventions.neurons.find import find_neurons
from personality_vector.subject.models import load_model, load_tokenizer, resolve_device

_OF_VECTORS = ("layers", "pooling", "estimator")


def find_recipe_neurons(recipe: SteerRecipe) -> NeuronSet:
    """Return the neurons of a recipe with two sides of data, tied to its model by fingerprint.

    Raises:
        RecipeError: It has a persona, or a key that only a vector has.
        DataError: A side cannot be read or selects nothing, or no neuron tells them apart.
        ModelError: The model cannot be loaded, or its neurons cannot be found.
    """
    require_for_neurons(recipe)
    positive, negative = read_sides(recipe)
    checkpoint = Checkpoint.open(recipe.model)
    device = resolve_device(recipe.device)
    neurons = find_neurons(
        load_model(checkpoint.path, dtype=recipe.dtype, device=device),
        load_tokenizer(checkpoint.path),
        positive,
        negative,
        batch_size=recipe.batch_size,
        pole=recipe.pole,
    )
    return replace(neurons, model=checkpoint.fingerprint.digest)


def require_for_neurons(recipe: SteerRecipe) -> None:
    """Refuse the keys of a steer recipe that would change nothing here.

    Raises:
        RecipeError: One is given.
    """
    fields = SteerRecipe.model_fields
    odd = [key for key in _OF_VECTORS if getattr(recipe, key) != fields[key].default]
    if odd:
        raise RecipeError(
            f"neurons are counted in all layers and over whole responses; leave out {some(odd)}"
        )
