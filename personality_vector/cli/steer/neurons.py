"""``pvec steer neurons``: find the neurons that tell two poles apart."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from personality_vector.cli import options
from personality_vector.elicitation.recipe import SteerRecipe
from personality_vector.errors import RecipeError, some

if TYPE_CHECKING:
    from personality_vector.interventions.neurons.chosen import NeuronSet

_OF_VECTORS = ("layers", "pooling", "estimator")


def check(recipe: SteerRecipe) -> dict[str, Any]:
    """Open the model and read both sides."""
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.elicitation.extract import read_sides

    require_for_neurons(recipe)
    positive, negative = read_sides(recipe)
    fingerprint = str(Checkpoint.open(recipe.model).fingerprint)
    return {"fingerprint": fingerprint, "positive": len(positive), "negative": len(negative)}


def neurons(recipe: SteerRecipe, out: Path, *, force: bool, as_json: bool) -> None:
    """Find the neurons that tell two poles apart.

    Neurons of the MLPs that are active more often over the responses of one side.
    """
    found = find_recipe_neurons(recipe)
    found.save(out, force=force)
    plus, minus = found.sizes
    result = {
        "out": str(out),
        "pole": str(found.pole),
        "counts": found.counts,
        "positive": plus,
        "negative": minus,
    }
    options.show(
        result,
        as_json=as_json,
        text=lambda: (
            f"{out}: {plus} neurons of {found.pole} and {minus} of its opposite, "
            f"from {found.counts[0]} and {found.counts[1]} responses"
        ),
    )


def find_recipe_neurons(recipe: SteerRecipe) -> "NeuronSet":
    """Return the neurons of a recipe with two sides of data, tied to its model by fingerprint.

    Raises:
        RecipeError: It has a persona, or a key that only a vector has.
        DataError: A side cannot be read or selects nothing, or no neuron tells them apart.
        ModelError: The model cannot be loaded, or its neurons cannot be found.
    """
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.elicitation.extract import read_sides
    from personality_vector.interventions.neurons.find import find_neurons
    from personality_vector.subject.models import load_model, load_tokenizer, resolve_device

    require_for_neurons(recipe)
    positive, negative = read_sides(recipe)
    checkpoint = Checkpoint.open(recipe.model)
    device = resolve_device(recipe.device)
    found = find_neurons(
        load_model(checkpoint.path, dtype=recipe.dtype, device=device),
        load_tokenizer(checkpoint.path),
        positive,
        negative,
        batch_size=recipe.batch_size,
        pole=recipe.pole,
    )
    return replace(found, model=checkpoint.fingerprint.digest)


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
