"""What a mergekit YAML does that its author may not expect, in a sentence each."""

from collections.abc import Iterator, Mapping

from personality_vector.merging.mergekit.conventions import Convention
from personality_vector.merging.mergekit.recipe import MergekitRecipe
from personality_vector.merging.mergekit.settings import Values


def notes_on(
    recipe: MergekitRecipe, convention: Convention, values: Mapping[str, Values]
) -> Iterator[str]:
    """Yield what mergekit does in silence: weights that cancel, parameters without effect."""
    yield from _on_normalize(values)
    given = [recipe.parameters, *(spec.parameters for spec in recipe.models)]
    given += [part.parameters for part in recipe.slices]
    given += [source.parameters for part in recipe.slices for source in part.sources]
    if convention.trim == "nothing" and any("density" in level for level in given):
        yield f"{recipe.merge_method} does not trim: density has no effect"
    if any(spec.model == recipe.base_model and spec.parameters for spec in recipe.models):
        yield "parameters under the base have no effect"
    if convention.trim in ("random", "ranked"):
        yield "random masks are those of this tool and its seed, not of mergekit's --random-seed"


def _on_normalize(values: Mapping[str, Values]) -> Iterator[str]:
    normalized = [v for v in values.values() if v.shared["normalize"]]
    weights = [[own["weight"] for own in v.of.values() if "weight" in own] for v in normalized]
    divides = "normalize: true divides by the sum of weights"
    if any(len(row) == 1 and row[0] != 1 for row in weights):
        yield f"{divides}, so one model's weight has no effect; set normalize: false to scale"
    elif any(sum(row) != 1 for row in weights):
        yield f"{divides}, so only their ratios have an effect; set normalize: false to scale"
    if any(min(row) < 0 < max(row) for row in weights if row):
        yield f"{divides}, which is small for weights of both signs and inflates the change"
