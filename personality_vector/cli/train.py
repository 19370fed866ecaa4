"""``pvec train``: fine-tune a base on one pole."""

from pathlib import Path
from typing import Any

from personality_vector.cli import options
from personality_vector.finetuning.recipe import TrainRecipe


def check(recipe: TrainRecipe) -> dict[str, Any]:
    """Open the base and read the data."""
    from personality_vector.checkpoint import Checkpoint
    from personality_vector.data.chats import read_chats

    return {
        "base": str(Checkpoint.open(recipe.base).fingerprint),
        "examples": len(read_chats(recipe.data.narrowed(recipe.pole))),
    }


def train(recipe: TrainRecipe, out: Path, *, force: bool, as_json: bool) -> None:
    """Fine-tune a base on one pole."""
    from personality_vector.finetuning.sft import train as fine_tune

    done = fine_tune(recipe, out, force=force)
    result = {
        "out": str(done.path),
        "pole": str(recipe.pole),
        "examples": done.examples,
        "loss": done.loss,
    }
    options.show(
        result,
        as_json=as_json,
        text=lambda: f"{done.path}: {recipe.pole}, {done.examples} examples, loss {done.loss:.3f}",
    )
