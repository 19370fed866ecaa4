"""What the models of a mergekit YAML have to be, and in which dtype they come out."""

from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from personality_vector.checkpoint import Checkpoint
from personality_vector.checkpoint.reader import read_json
from personality_vector.delta.lora import is_adapter
from personality_vector.delta.storage import is_saved_delta
from personality_vector.errors import RecipeError, TensorMismatchError
from personality_vector.merging.mergekit.recipe import MergekitRecipe
from personality_vector.subject.models import DTYPES

_TOKENIZER = "tokenizer.json"


def open_models(references: Sequence[str]) -> list[Checkpoint]:
    """Open whole checkpoints.

    Raises:
        RecipeError: One is a LoRA adapter or a saved delta, which a mergekit YAML cannot hold.
        CheckpointError: One cannot be read.
    """
    for reference in references:
        for kind, term, holds in (
            ("a LoRA adapter", "tuned", is_adapter),
            ("a saved delta", "delta", is_saved_delta),
        ):
            if holds(Path(reference)):
                raise RecipeError(
                    f"{reference}: is {kind}, not a model; write a merge recipe with `{term}: ...`"
                )
    return [Checkpoint.open(reference) for reference in references]


def require_vocabulary(recipe: MergekitRecipe, checkpoints: Sequence[Checkpoint]) -> None:
    """Check that a tokenizer that is asked for changes nothing: all models have the same tokens.

    Raises:
        TensorMismatchError: Two have not.
    """
    if recipe.vocabulary is None:
        return
    first, *others = checkpoints
    for other in others:
        if _tokens(other) != _tokens(first):
            raise TensorMismatchError(
                f"{other.path}: has other tokens than {first.path}; rows of embeddings are not "
                "moved here: use mergekit, or leave the tokenizer out"
            )


def _tokens(checkpoint: Checkpoint) -> Any:
    path = checkpoint.path / _TOKENIZER
    if not path.is_file():
        return None
    content = read_json(path)
    return content.get("model", {}).get("vocab"), content.get("added_tokens")


def promoted(checkpoints: Sequence[Checkpoint]) -> dict[str, torch.dtype]:
    """Return, for every floating-point tensor, the dtype that holds it in all checkpoints."""
    first = checkpoints[0]
    return {
        name: reduce(torch.promote_types, (one.entries[name].dtype for one in checkpoints))
        for name in first.names
        if first.entries[name].dtype.is_floating_point
    }


def output_dtype(
    recipe: MergekitRecipe, base: Checkpoint, stored: Mapping[str, torch.dtype]
) -> str:
    """Return the dtype that mergekit writes: ``same`` where it is that of the base throughout.

    Raises:
        RecipeError: It would differ from tensor to tensor.
    """
    given = recipe.out_dtype or recipe.dtype
    if given is not None:
        return given
    if all(base.entries[name].dtype == dtype for name, dtype in stored.items()):
        return "same"
    names = [name for name, dtype in DTYPES.items() if {dtype} == set(stored.values())]
    if not names:
        raise RecipeError("the models mix dtypes; give dtype, such as bfloat16")
    return names[0]
