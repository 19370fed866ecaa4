"""From a recipe to a study: everything that it names is opened and checked."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from personality_vector.checkpoint import Checkpoint
from personality_vector.checkpoint.reader import read_json
from personality_vector.errors import DataError
from personality_vector.interventions.spec import InterventionSpec
from personality_vector.manifest import MANIFEST
from personality_vector.measures.likelihood import LikelihoodSpec
from personality_vector.study.design import Arm, Design, Grid
from personality_vector.study.matched import Matched
from personality_vector.study.recipe import CompareRecipe, EvalRecipe, StudyRecipe, SweepRecipe
from personality_vector.study.study import Study

if TYPE_CHECKING:
    from collections.abc import Sequence

    from personality_vector.subject.protocols import Intervention


def open_study(recipe: EvalRecipe | SweepRecipe) -> Study:
    """Return the study that a recipe describes; no model is loaded.

    Raises:
        PersonalityVectorError: An input is missing, unreadable or of another base.
    """
    base = Checkpoint.open(recipe.base if isinstance(recipe, SweepRecipe) else recipe.model)
    arms: list[Arm] = []
    if isinstance(recipe, SweepRecipe):
        require_held_out(recipe)
        arms = [_arm(spec, recipe, base) for spec in recipe.interventions]
    read: dict[str, Any] = json.loads(recipe.model_dump_json())
    return Study(
        base,
        tuple(arms),
        tuple(spec.open() for spec in recipe.measures),
        recipe.seeds,
        recipe.dtype,
        recipe.device,
        _design(recipe),
        read,
    )


def _arm(spec: InterventionSpec, recipe: SweepRecipe, base: Checkpoint) -> Arm:
    strengths: Sequence[float] = spec.strengths or recipe.strengths or ()
    if not spec.has_seed:
        return Arm(spec.open(base), strengths)
    opened: dict[int, Intervention] = {seed: spec.at_seed(seed).open(base) for seed in recipe.seeds}
    return Arm(opened, strengths)


def _design(recipe: StudyRecipe) -> Design:
    if not isinstance(recipe, CompareRecipe):
        return Grid()
    spec = next(spec for spec in recipe.measures if isinstance(spec, LikelihoodSpec))
    return Matched(recipe.pole, recipe.points, spec.open(), spec.of_trait(recipe.pole.trait).open())


def require_held_out(recipe: SweepRecipe) -> None:
    """Check that no fine-tune of ours was trained on the statements that measure it.

    Raises:
        DataError: Its recipe split the same statements elsewhere.
    """
    for spec in recipe.measures:
        if isinstance(spec, LikelihoodSpec):
            for given in recipe.interventions:
                for tuned in _tuned(json.loads(given.model_dump_json())):
                    _require_trained_on_the_rest(Path(tuned), spec)


def _tuned(data: Any) -> list[str]:
    """Return every fine-tuned model that an intervention names, at any depth."""
    if isinstance(data, list):
        return [found for each in data for found in _tuned(each)]
    if not isinstance(data, dict):
        return []
    own = [data["tuned"]] if isinstance(data.get("tuned"), str) else []
    return own + [found for value in data.values() for found in _tuned(value)]


def _require_trained_on_the_rest(tuned: Path, measure: LikelihoodSpec) -> None:
    manifest = tuned / MANIFEST
    data = read_json(manifest).get("recipe", {}).get("data") if manifest.is_file() else None
    if not isinstance(data, dict) or data.get("format") != "statements":
        return
    ours, theirs = measure.statements.resolve(), Path(str(data.get("source"))).resolve()
    is_same = ours == theirs or ours in theirs.parents or theirs in ours.parents
    if is_same and (data.get("part"), data.get("held_out")) != ("train", measure.held_out):
        raise DataError(
            f"{tuned}: was trained on part {data.get('part')} with held_out "
            f"{data.get('held_out')} of {theirs}; {measure.called}.held_out {measure.held_out} "
            "would measure it on its own training text"
        )
