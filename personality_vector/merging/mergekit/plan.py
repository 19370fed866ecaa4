"""From a mergekit YAML to a checked plan: on our engine where possible, or through mergekit."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from personality_vector.checkpoint import FLOATS, Checkpoint
from personality_vector.delta import open_delta
from personality_vector.errors import RecipeError
from personality_vector.merging.merged import Merged
from personality_vector.merging.mergekit.bridge import BridgePlan, plan_bridge
from personality_vector.merging.mergekit.conventions import (
    Precision,
    TaskArithmetic,
)
from personality_vector.merging.mergekit.models import (
    Region,
    open_models,
    output_dtype,
    promoted,
    regions_of,
    require_vocabulary,
)
from personality_vector.merging.mergekit.recipe import MergekitRecipe
from personality_vector.merging.mergekit.settings import (
    CONVENTIONS,
    Convention,
    Values,
    levels_of,
    resolve,
    summary,
    summary_of,
)
from personality_vector.merging.plan import MergePlan, Output
from personality_vector.merging.summands import require_nonzero
from personality_vector.merging.terms import LONGEST_ROW, Term

_SOURCE = "conventions of mergekit 0.1.5, on this tool's engine"


def plan_mergekit(
    data: Mapping[str, Any], *, origin: str, folder: Path, seed: int = 0
) -> MergePlan | BridgePlan:
    """Check a mergekit YAML and everything that it names; return what would be done.

    Args:
        data: The content of the YAML.
        origin: The file, for messages.
        folder: Where its relative paths start.
        seed: Seed of random masks, which a mergekit YAML does not have.

    Raises:
        PersonalityVectorError: The YAML or a model is refused, or asks for something unsupported.
    """
    recipe = MergekitRecipe.parse(data, origin=origin, folder=folder)
    try:
        if recipe.merge_method in CONVENTIONS:
            return _plan_conventions(recipe, data, seed)
        return plan_bridge(recipe, data, seed)
    except RecipeError as error:
        raise RecipeError(f"{origin}: {error}") from error


def _plan_conventions(recipe: MergekitRecipe, data: Mapping[str, Any], seed: int) -> MergePlan:
    convention = CONVENTIONS[recipe.merge_method]
    models = [model for model in recipe.references if model != recipe.base_model]
    if recipe.base_model is None or not models:
        raise RecipeError(f"{recipe.merge_method} needs base_model and a model beside it")
    base, *checkpoints = open_models([recipe.base_model, *models])
    deltas = [open_delta(one.path, base, label=one.reference) for one in checkpoints]
    for delta in deltas:
        require_nonzero(delta)
    require_vocabulary(recipe, [base, *checkpoints])
    stored = promoted([base, *checkpoints])
    regions = regions_of(recipe, base.names)
    values = resolve(recipe, regions, convention.parameters, list(stored))
    if convention.trim == "ranked":
        _require_ranks(base, values)
    written = output_dtype(recipe, base, stored)
    precisions = {
        name: Precision(kept, FLOATS.get(recipe.dtype or "", kept), FLOATS.get(written, kept))
        for name, kept in stored.items()
    }
    options = {"dtype": recipe.dtype or "same", **summary(v.shared for v in values.values())}
    name = f"mergekit-{recipe.merge_method}"
    combine = TaskArithmetic(name, _SOURCE, options, convention, models, values, precisions, base)
    terms = tuple(
        # The weight of a model is a matter of the convention, so alpha is 1.
        Term(delta, 1.0, lambda name: 1.0, position, summary_of(values, model))  # noqa: ARG005
        for position, (delta, model) in enumerate(zip(deltas, models, strict=True))
    )
    delta = Merged(terms, combine, seed).delta(base)
    notes = tuple(_notes_on(recipe, convention, regions, values))
    return MergePlan(base, delta, Output(written), notes=notes, recipe=data)


def _require_ranks(base: Checkpoint, values: Mapping[str, Values]) -> None:
    """Refuse tensors that mergekit ranks along another axis than rows, and impossible densities.

    Raises:
        RecipeError: There is such a tensor; the message names it.
    """
    for name, found in values.items():
        shape = base.entries[name].shape
        for own in found.of.values():
            density, epsilon = own.get("density", 1.0), own.get("epsilon", 0.0)
            if density in (0, 1):
                continue
            if not 0.0 < density - epsilon <= density + epsilon < 1.0:
                raise RecipeError(
                    f"density {density:g} and epsilon {epsilon:g}, for {name}: density - epsilon "
                    "and density + epsilon must lie in (0, 1)"
                )
            if len(shape) > 2 or shape[-1:] > (LONGEST_ROW,):
                raise RecipeError(
                    f"{name} of shape {list(shape)}: della ranks the rows of matrices, of at most "
                    f"{LONGEST_ROW} entries; give it a density of 1"
                )


def _notes_on(
    recipe: MergekitRecipe,
    convention: Convention,
    regions: Sequence[Region],
    values: Mapping[str, Values],
) -> Iterator[str]:
    """Yield what mergekit does without a word: weights that cancel, parameters without effect."""
    normalized = [v for v in values.values() if v.shared["normalize"]]
    weights = [[own["weight"] for own in v.of.values() if "weight" in own] for v in normalized]
    divides = "normalize: true divides by the sum of weights"
    if any(len(row) == 1 and row[0] != 1 for row in weights):
        yield f"{divides}, so one model's weight has no effect; set normalize: false to scale"
    elif any(sum(row) != 1 for row in weights):
        yield f"{divides}, so only their ratios have an effect; set normalize: false to scale"
    if any(min(row) < 0 < max(row) for row in weights if row):
        yield f"{divides}, which is small for weights of both signs and inflates the change"
    levels = (level for _, level, _ in levels_of(recipe, regions))
    if convention.trim == "nothing" and any("density" in level for level in levels):
        yield f"{recipe.merge_method} does not trim: density has no effect"
    if any(spec.model == recipe.base_model and spec.parameters for spec in recipe.models):
        yield "parameters under the base have no effect"
    if convention.trim in ("random", "ranked"):
        yield "random masks are those of this tool and its seed, not of mergekit's --random-seed"
