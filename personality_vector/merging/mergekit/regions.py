"""Slices of a mergekit YAML: which layers of the output are made of which models.

Numbers over depth run from the first layer of a slice to its last. A tensor outside the layers
belongs to the first slice (embeddings) or the last one (final norm, head), and has the first number
in both: so does mergekit 0.1.5.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from personality_vector.errors import RecipeError
from personality_vector.merging.mergekit.recipe import MergekitRecipe, Rule, SliceSpec
from personality_vector.merging.summands import chosen, depths_of, layer_of

Level = Mapping[str, tuple[Rule, ...]]
"""Parameters as they are given at one place of the file."""


@dataclass(frozen=True, slots=True)
class Region:
    """A run of layers of the output.

    Attributes:
        where: In the YAML, for messages.
        models: Of which it is made, in order, with the parameters of each.
        parameters: Of the slice.
        layers: First layer and the one after the last; ``None``: all.
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
        return _slices(recipe, _depth(names))
    models = {one.model: one.parameters for one in recipe.models}
    if len(models) < len(recipe.models):
        raise RecipeError("models: the same model is given twice")
    if recipe.base_model:
        models.setdefault(recipe.base_model, {})
    return [Region("models", models)]


def _slices(recipe: MergekitRecipe, depth: int) -> list[Region]:
    at, found = 0, []
    for number, part in enumerate(recipe.slices):
        where = f"slices.{number}"
        if part.base_model not in (None, recipe.base_model):
            raise RecipeError(f"{where}.base_model: give one base_model for the whole merge")
        _require_in_place(where, part, at)
        layers = part.sources[0].layer_range
        models = {one.model: one.parameters for one in part.sources}
        found.append(Region(where, models, part.parameters, layers))
        at = layers[1]
    if at != depth:
        raise RecipeError(f"slices: end at layer {at}, the model at {depth}; none can be dropped")
    return found


def _require_in_place(where: str, part: SliceSpec, at: int) -> None:
    end = part.sources[0].layer_range[1]
    for source in part.sources:
        if source.layer_range != (at, end) or end <= at:
            raise RecipeError(
                f"{where}: takes layers {list(source.layer_range)} of {source.model} where layer "
                f"{at} comes next; layers are merged in place here, not moved or repeated"
            )
    if len({source.model for source in part.sources}) < len(part.sources):
        raise RecipeError(f"{where}: the same model is given twice")


def _depth(names: Iterable[str]) -> int:
    """Return the number of layers of a model that has one stack of them."""
    depths = depths_of(names)
    if len(depths) != 1:
        raise RecipeError("slices: the model has no layers, or several stacks of them; give models")
    return next(iter(depths.values()))


def place(name: str, regions: Sequence[Region], depths: Mapping[str, int]) -> tuple[Region, float]:
    """Return the region of a tensor, and where it lies there: 0 the first layer, 1 the last."""
    found = layer_of(name)
    if found is None:
        return regions[0 if _is_embedding(name) else -1], 0.0
    stack, layer = found
    for region in regions:
        first, end = region.layers or (0, depths[stack])
        if first <= layer < end:
            return region, (layer - first) / (end - first - 1) if end - first > 1 else 1.0
    raise RecipeError(f"{name}: lies in no slice")


def _is_embedding(name: str) -> bool:
    try:
        return bool(chosen([name], "embeddings"))
    except RecipeError:
        return False
