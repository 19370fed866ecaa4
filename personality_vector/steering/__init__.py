"""Steering: directions in the residual stream, how to find them and how to add them."""

from personality_vector.steering.apply import resolve_layers, steered
from personality_vector.steering.vector import SteeringVector

__all__ = ["SteeringVector", "resolve_layers", "steered"]
