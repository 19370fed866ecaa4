"""From a mergekit YAML to a checked plan: on our engine, or through mergekit where we must."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from personality_vector.checkpoint import Checkpoint
from personality_vector.delta import Delta, open_delta
from personality_vector.errors import RecipeError
from personality_vector.merging.engine import MergeReport, write_merge
from personality_vector.merging.merged import Merged
from personality_vector.merging.mergekit.bridge import BridgePlan, plan_bridge, write_bridge
from personality_vector.merging.mergekit.conventions import (
    CONVENTIONS,
    Precision,
    TaskArithmetic,
)
from personality_vector.merging.mergekit.inputs import (
    open_models,
    output_dtype,
    promoted,
    require_vocabulary,
)
from personality_vector.merging.mergekit.notes import notes_on
from personality_vector.merging.mergekit.recipe import MergekitRecipe
from personality_vector.merging.mergekit.regions import regions_of
from personality_vector.merging.mergekit.settings import Values, resolve, summary, summary_of
from personality_vector.merging.plan import MergePlan, Output
from personality_vector.merging.summands import require_nonzero
from personality_vector.merging.terms import LONGEST_ROW, Term
from personality_vector.subject.models import DTYPES


@dataclass(frozen=True)
class MergekitPlan(MergePlan):
    """A merge by one of mergekit's conventions, on our engine."""

    parameters: tuple[Mapping[str, Any], ...] = ()
    """Of each term, for the manifest."""

    def describe(self) -> dict[str, Any]:
        """Return the plan as JSON-like data, with the parameters of each model."""
        described = super().describe()
        rows = zip(described["terms"], self.parameters, strict=True)
        return {**described, "terms": [{**term, **own} for term, own in rows]}


def plan_mergekit(
    data: Mapping[str, Any], *, origin: str, folder: Path, seed: int = 0
) -> MergekitPlan | BridgePlan:
    """Check a mergekit YAML and everything that it names; return what would be done.

    Args:
        data: The content of the YAML.
        origin: The file, for messages.
        folder: Where its relative paths start.
        seed: Of random masks; a mergekit YAML has none.

    Raises:
        PersonalityVectorError: The YAML or a model is refused, or asks for what is not done here.
    """
    recipe = MergekitRecipe.parse(data, origin=origin, folder=folder)
    try:
        if recipe.merge_method in CONVENTIONS:
            return _plan_conventions(recipe, data, seed)
        return plan_bridge(recipe, data, seed)
    except RecipeError as error:
        raise RecipeError(f"{origin}: {error}") from error


def write_mergekit(
    plan: MergePlan | BridgePlan, out: str | Path, *, force: bool = False
) -> MergeReport:
    """Carry out a plan, on our engine or through mergekit."""
    if isinstance(plan, BridgePlan):
        return write_bridge(plan, out, force=force)
    return write_merge(plan, out, force=force)


def _plan_conventions(recipe: MergekitRecipe, data: Mapping[str, Any], seed: int) -> MergekitPlan:
    convention = CONVENTIONS[recipe.merge_method]
    models = [model for model in recipe.references if model != recipe.base_model]
    if recipe.base_model is None or not models:
        raise RecipeError(f"{recipe.merge_method} needs base_model and a model beside it")
    base, *checkpoints = open_models([recipe.base_model, *models])
    terms = tuple(_term(base, one, position) for position, one in enumerate(checkpoints))
    require_vocabulary(recipe, [base, *checkpoints])
    stored = promoted([base, *checkpoints])
    values = resolve(recipe, regions_of(recipe, base.names), convention.parameters, list(stored))
    if convention.trim == "ranked":
        _require_ranks(base, values)
    written = output_dtype(recipe, base, stored)
    precisions = {
        name: Precision(kept, DTYPES.get(recipe.dtype or "", kept), DTYPES.get(written, kept))
        for name, kept in stored.items()
    }
    combine = TaskArithmetic(
        name=f"mergekit-{recipe.merge_method}",
        convention=convention,
        models=models,
        values=values,
        precisions=precisions,
        base=base,
        options={"dtype": recipe.dtype or "same", **summary(v.shared for v in values.values())},
    )
    return MergekitPlan(
        base=base,
        delta=Merged(terms, combine, seed).delta(base),
        output=Output(written),
        notes=tuple(notes_on(recipe, convention, values)),
        recipe=data,
        parameters=tuple(summary_of(values, model) for model in models),
    )


def _term(base: Checkpoint, tuned: Checkpoint, position: int) -> Term:
    """Return a model as a term; its weight is a matter of the convention, so alpha is 1."""
    delta: Delta = open_delta(tuned.path, base, label=tuned.reference)
    require_nonzero(delta)
    return Term(delta, 1.0, lambda name: 1.0, position)  # noqa: ARG005


def _require_ranks(base: Checkpoint, values: Mapping[str, Values]) -> None:
    """Refuse what mergekit would rank along another axis than rows, or draw impossible numbers for.

    Raises:
        RecipeError: It names the tensor.
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
