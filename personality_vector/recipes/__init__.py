"""Recipes: the schema of every YAML, and reading it strictly. Imports no torch."""

from personality_vector.recipes.choice import ChooseRecipe
from personality_vector.recipes.reading import Recipe, override, read_recipe, read_yaml
from personality_vector.recipes.schema import (
    MATCHED,
    CompareRecipe,
    DataSpec,
    EvalRecipe,
    InterventionSpec,
    MeasureSpec,
    MergeRecipe,
    OutputSpec,
    SweepRecipe,
    TermSpec,
    TrainRecipe,
)
from personality_vector.recipes.steering import JudgeSpec, RolloutSpec, SteerRecipe, ThresholdSpec

__all__ = [
    "MATCHED",
    "ChooseRecipe",
    "CompareRecipe",
    "DataSpec",
    "EvalRecipe",
    "InterventionSpec",
    "JudgeSpec",
    "MeasureSpec",
    "MergeRecipe",
    "OutputSpec",
    "Recipe",
    "RolloutSpec",
    "SteerRecipe",
    "SweepRecipe",
    "TermSpec",
    "ThresholdSpec",
    "TrainRecipe",
    "override",
    "read_recipe",
    "read_yaml",
]
