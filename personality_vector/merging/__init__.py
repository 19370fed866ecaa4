"""Merging: ``base + method(alpha_i * delta_i)``, streamed in chunks to a checkpoint."""

from personality_vector.merging.engine import MergeReport, merge, write_merge
from personality_vector.merging.plan import MergePlan, Output, Summand, plan_merge, plan_recipe

__all__ = [
    "MergePlan",
    "MergeReport",
    "Output",
    "Summand",
    "merge",
    "plan_merge",
    "plan_recipe",
    "write_merge",
]
