"""Recipes: the schema of every YAML, and reading it strictly. Imports no torch."""

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
    SteerRecipe,
    SweepRecipe,
    TermSpec,
    TrainRecipe,
)

__all__ = [
    "MATCHED",
    "CompareRecipe",
    "DataSpec",
    "EvalRecipe",
    "InterventionSpec",
    "MeasureSpec",
    "MergeRecipe",
    "OutputSpec",
    "Recipe",
    "SteerRecipe",
    "SweepRecipe",
    "TermSpec",
    "TrainRecipe",
    "override",
    "read_recipe",
    "read_yaml",
]
