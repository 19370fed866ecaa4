"""From a mergekit YAML to a checked plan: on our engine where possible, or through mergekit."""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from personality_vector.checkpoint import FLOATS, Checkpoint, TensorPlan, read_json
from personality_vector.delta import is_adapter, is_saved_delta, matched, open_delta
from personality_vector.errors import RecipeError, TensorMismatchError
from personality_vector.merging.merged import Merged
from personality_vector.merging.mergekit.bridge import BridgePlan, find_method
from personality_vector.merging.mergekit.conventions import Precision, TaskArithmetic
from personality_vector.merging.mergekit.recipe import MergekitRecipe
from personality_vector.merging.mergekit.settings import (
    CONVENTIONS,
    Convention,
    Parameter,
    Region,
    Values,
    levels_of,
    regions_of,
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
        return _plan_bridge(recipe, data, seed)
    except RecipeError as error:
        raise RecipeError(f"{origin}: {error}") from error


def _plan_conventions(recipe: MergekitRecipe, data: Mapping[str, Any], seed: int) -> MergePlan:
    convention = CONVENTIONS[recipe.merge_method]
    models = [model for model in recipe.references if model != recipe.base_model]
    if recipe.base_model is None or not models:
        raise RecipeError(f"{recipe.merge_method} needs base_model and a model beside it")
    base, *tuned = _opened([recipe.base_model, *models])
    deltas = [open_delta(one.path, base, label=one.reference) for one in tuned]
    for delta in deltas:
        require_nonzero(delta)
    regions = regions_of(recipe, base.names)
    stored, values, written = _settled(recipe, [base, *tuned], regions, convention.parameters)
    if convention.trim == "ranked":
        _require_ranks(base, values)
    precisions = {}
    for name, kept in stored.items():
        dtype = FLOATS.get(recipe.dtype or "", kept)
        narrows = torch.promote_types(kept, dtype) != dtype
        precisions[name] = Precision(dtype, FLOATS.get(written, kept), narrows)
    options = {"dtype": recipe.dtype or "same", **summary(v.shared for v in values.values())}
    combine = TaskArithmetic(
        f"mergekit-{recipe.merge_method}",
        _SOURCE,
        options,
        convention,
        models,
        values,
        precisions,
        base,
    )
    terms = tuple(
        # The weight of a model is a matter of the convention, so alpha is 1.
        Term(delta, 1.0, lambda name: 1.0, position, summary_of(values, model))  # noqa: ARG005
        for position, (delta, model) in enumerate(zip(deltas, models, strict=True))
    )
    notes = tuple(_notes_on(recipe, convention, regions, values))
    return MergePlan(base, Merged(terms, combine, seed), Output(written), notes=notes, recipe=data)


def _plan_bridge(recipe: MergekitRecipe, data: Mapping[str, Any], seed: int) -> BridgePlan:
    """Check a YAML whose method is mergekit's own.

    Raises:
        RecipeError: mergekit is missing, knows no such method, or refuses models or parameters.
    """
    method = find_method(recipe.merge_method)
    opened = dict(zip(recipe.references, _opened(recipe.references), strict=True))
    base = opened[recipe.base_model or recipe.references[0]]
    models = {reference: matched(base, model) for reference, model in opened.items()}
    regions = regions_of(recipe, base.names)
    for region in regions:
        try:
            method.validate_inputs(list(region.models), recipe.base_model)
        except ValueError as error:
            raise RecipeError(f"{region.where}: {error}") from error
    parameters = [
        Parameter(
            spec.name,
            None if spec.required else spec.default,
            spec.scope.value,
            "truth" if spec.value_type is bool else "number",
            optional=not spec.required and spec.default is None,
        )
        for spec in method.spec.parameters
    ]
    stored, values, written = _settled(recipe, [base, *models.values()], regions, parameters)
    tensors = [
        TensorPlan(e.name, FLOATS.get(written, e.dtype) if e.name in stored else e.dtype, e.shape)
        for e in base.in_file_order
    ]
    return BridgePlan(recipe, base, models, values, tensors, seed, data)


def _opened(references: Sequence[str]) -> list[Checkpoint]:
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


def _settled(
    recipe: MergekitRecipe,
    models: Sequence[Checkpoint],
    regions: Sequence[Region],
    parameters: Sequence[Parameter],
) -> tuple[Mapping[str, torch.dtype], Mapping[str, Values], str]:
    """Return what holds for each floating-point tensor of the models, the base being the first.

    Returns:
        The dtype that holds it in all models; the parameters; and the dtype that mergekit writes,
        ``same`` where it is that of the base throughout.

    Raises:
        TensorMismatchError: A tokenizer is asked for, and two models have different tokens.
        RecipeError: A parameter is refused, or the dtype would differ from tensor to tensor.
    """
    base, *others = models
    for other in others if recipe.vocabulary is not None else ():
        if _tokens(other) != _tokens(base):
            raise TensorMismatchError(
                f"{other.path}: has other tokens than {base.path}; rows of embeddings are not "
                "moved by this tool: use mergekit, or leave the tokenizer out"
            )
    stored = {
        name: reduce(torch.promote_types, (one.entries[name].dtype for one in models))
        for name in base.names
        if base.entries[name].dtype.is_floating_point
    }
    values = resolve(recipe, regions, parameters, list(stored))
    written: str | None = recipe.out_dtype or recipe.dtype
    if not written and all(base.entries[name].dtype == dtype for name, dtype in stored.items()):
        written = "same"
    names = [name for name, dtype in FLOATS.items() if {dtype} == set(stored.values())]
    if not written and not names:
        raise RecipeError("the models mix dtypes; give dtype, such as bfloat16")
    return stored, values, written or names[0]


def _tokens(checkpoint: Checkpoint) -> Any:
    path = checkpoint.path / "tokenizer.json"
    content = read_json(path) if path.is_file() else {}
    return content.get("model", {}).get("vocab"), content.get("added_tokens")


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
