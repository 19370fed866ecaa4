"""``pvec steer``: steering vectors."""

from pathlib import Path
from typing import Any

from personality_vector.cli import options
from personality_vector.recipes import SteerRecipe


def check(recipe: SteerRecipe) -> dict[str, Any]:
    """Open the model and read both sides."""
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.data import read_chats

    return {
        "fingerprint": str(Checkpoint.open(recipe.model).fingerprint),
        "positive": len(read_chats(recipe.positive.narrowed(recipe.pole))),
        "negative": len(read_chats(recipe.negative.narrowed(recipe.pole.opposite))),
    }


def extract(recipe: SteerRecipe, out: Path, *, force: bool, as_json: bool) -> None:
    """Extract a steering vector.

    The mean activation over positive minus that over negative responses.
    """
    from personality_vector.steering.recipe import extract_recipe

    vector = extract_recipe(recipe)
    vector.save(out, force=force)
    norms = {layer: vector.norm(layer) for layer in vector.layers}
    result = {"out": str(out), "pole": str(vector.pole), "counts": vector.counts, "norms": norms}
    options.show(
        result,
        as_json=as_json,
        text=lambda: (
            f"{out}: {vector.pole}, {len(norms)} layers, "
            f"from {vector.counts[0]} positive and {vector.counts[1]} negative responses"
        ),
    )
