"""Merging: ``base + method(alpha_i * delta_i)``, streamed tensor by tensor to a checkpoint."""

from personality_vector.merging.engine import MergeReport, merge, write_merge
from personality_vector.merging.plan import Output, plan_recipe

__all__ = ["MergeReport", "Output", "merge", "plan_recipe", "write_merge"]
