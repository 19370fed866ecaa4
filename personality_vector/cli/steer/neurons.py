"""``pvec steer neurons``: find the neurons that tell two poles apart."""

from pathlib import Path
from typing import Any

from personality_vector.cli import options
from personality_vector.elicitation.recipe import SteerRecipe


def check(recipe: SteerRecipe) -> dict[str, Any]:
    """Open the model and read both sides."""
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.elicitation.extract import read_sides
    from personality_vector.interventions.neurons.recipe import require_for_neurons

    require_for_neurons(recipe)
    positive, negative = read_sides(recipe)
    fingerprint = str(Checkpoint.open(recipe.model).fingerprint)
    return {"fingerprint": fingerprint, "positive": len(positive), "negative": len(negative)}


def neurons(recipe: SteerRecipe, out: Path, *, force: bool, as_json: bool) -> None:
    """Find the neurons that tell two poles apart.

    Neurons of the MLPs that are active more often over the responses of one side.
    """
    from personality_vector.interventions.neurons.recipe import find_recipe_neurons

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
