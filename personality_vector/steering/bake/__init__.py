"""Baking: a steered model as an ordinary checkpoint, or as an adapter of a few kilobytes."""

from personality_vector.steering.bake.baking import BakeResult, bake, bake_ablation
from personality_vector.steering.bake.proof import Proof
from personality_vector.steering.bake.routes import ROUTES, Route, route_for

__all__ = ["ROUTES", "BakeResult", "Proof", "Route", "bake", "bake_ablation", "route_for"]
