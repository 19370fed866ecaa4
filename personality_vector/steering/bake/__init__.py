"""Baking: a steered model as an ordinary checkpoint, or as an adapter of a few kilobytes."""

from personality_vector.steering.bake.baking import BakeResult, bake, bake_ablation
from personality_vector.steering.bake.base import ROUTES, route_for
from personality_vector.steering.bake.proof import Proof

__all__ = ["ROUTES", "BakeResult", "Proof", "bake", "bake_ablation", "route_for"]
