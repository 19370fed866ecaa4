"""The models of a mergekit YAML: what they have to be, and which layers of the output they make.

Numbers over depth run from the first layer of a slice to its last. A tensor outside the layers
belongs to the first slice (embeddings) or the last one (final norm, head), and has the first number
in both: so does mergekit 0.1.5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from personality_vector.checkpoint import FLOATS, Checkpoint, kind, read_json
from personality_vector.delta import block_of, is_adapter, is_saved_delta
from personality_vector.errors import RecipeError, TensorMismatchError
from personality_vector.merging.mergekit.recipe import MergekitRecipe, Rule
from personality_vector.merging.summands import depths_of

Level = Mapping[str, tuple[Rule, ...]]
"""Parameters as they are given at one place of the file."""


def open_models(references: Sequence[str]) -> list[Checkpoint]:
    """Open whole checkpoints.

    Raises:
        RecipeError: One is a LoRA adapter or a saved delta, which a mergekit YAML cannot hold.
        CheckpointError: One cannot be read.
    """
    for reference in references:
        for what, term, holds in (
            ("a LoRA adapter", "tuned", is_adapter),
            ("a saved delta", "delta", is_saved_delta),
        ):
            if holds(Path(reference)):
                raise RecipeError(
                    f"{reference}: is {what}, not a model; write a merge recipe with `{term}: ...`"
                )
    return [Checkpoint.open(reference) for reference in references]


def require_vocabulary(recipe: MergekitRecipe, checkpoints: Sequence[Checkpoint]) -> None:
    """Check that a tokenizer that is asked for changes nothing: all models have the same tokens.

    Raises:
        TensorMismatchError: Two models have different tokens.
    """
    if recipe.vocabulary is None:
        return
    first, *others = checkpoints
    for other in others:
        if _tokens(other) != _tokens(first):
            raise TensorMismatchError(
                f"{other.path}: has other tokens than {first.path}; rows of embeddings are not "
                "moved by this tool: use mergekit, or leave the tokenizer out"
            )


def _tokens(checkpoint: Checkpoint) -> Any:
    path = checkpoint.path / "tokenizer.json"
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
    names = [name for name, dtype in FLOATS.items() if {dtype} == set(stored.values())]
    if not names:
        raise RecipeError("the models mix dtypes; give dtype, such as bfloat16")
    return names[0]


@dataclass(frozen=True, slots=True)
class Region:
    """Some consecutive layers of the output.

    Attributes:
        where: Its place in the YAML, for messages.
        models: The models that it is made of, in order, with the parameters of each.
        parameters: The parameters of the slice.
        layers: The first layer and the one after the last; ``None`` stands for all layers.
    """

    where: str
    models: Mapping[str, Level]
    parameters: Level = field(default_factory=dict)
    layers: tuple[int, int] | None = None


def regions_of(recipe: MergekitRecipe, names: Sequence[str]) -> list[Region]:
    """Return the slices of a recipe; its models are one slice of every layer.

    Raises:
        RecipeError: A slice takes layers from elsewhere or leaves some out.
    """
    if recipe.slices:
        return _slices(recipe, depths_of(names))
    models = {one.model: one.parameters for one in recipe.models}
    if len(models) < len(recipe.models):
        raise RecipeError("models: the same model is given twice")
    if recipe.base_model:
        models.setdefault(recipe.base_model, {})
    return [Region("models", models)]


def _slices(recipe: MergekitRecipe, depths: Mapping[str, int]) -> list[Region]:
    if len(depths) != 1:
        raise RecipeError(
            "slices: the model has no layers, or several stacks of them; give models instead"
        )
    (depth,) = depths.values()
    at, found = 0, []
    for number, part in enumerate(recipe.slices):
        where = f"slices.{number}"
        if part.base_model not in (None, recipe.base_model):
            raise RecipeError(f"{where}.base_model: give one base_model for the whole merge")
        layers = part.sources[0].layer_range
        for source in part.sources:
            if source.layer_range != (at, layers[1]) or layers[1] <= at:
                raise RecipeError(
                    f"{where}: takes layers {list(source.layer_range)} of {source.model} where "
                    f"layer {at} comes next; layers are merged in place here, not moved or repeated"
                )
        models = {one.model: one.parameters for one in part.sources}
        if len(models) < len(part.sources):
            raise RecipeError(f"{where}: the same model is given twice")
        found.append(Region(where, models, part.parameters, layers))
        at = layers[1]
    if at != depth:
        raise RecipeError(f"slices: end at layer {at}, the model at {depth}; none can be dropped")
    return found


def place(name: str, regions: Sequence[Region], depths: Mapping[str, int]) -> tuple[Region, float]:
    """Return the region of a tensor, and where it lies there: 0 the first layer, 1 the last."""
    block = block_of(name)
    if block is None:
        return regions[0 if kind(name) == "embeddings" else -1], 0.0
    stack, layer, _ = block
    for region in regions:
        first, end = region.layers or (0, depths[stack])
        if first <= layer < end:
            return region, (layer - first) / (end - first - 1) if end - first > 1 else 1.0
    raise RecipeError(f"{name}: lies in no slice")
