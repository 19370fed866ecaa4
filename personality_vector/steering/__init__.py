"""Steering: directions in the residual stream, how to find them and how to act with them."""

from personality_vector.steering.apply import EDITS, How, Strength, resolve_layers, steered
from personality_vector.steering.positions import ALL, Positions
from personality_vector.steering.vector import SteeringVector
from personality_vector.steering.where import Gate

__all__ = [
    "ALL",
    "EDITS",
    "Gate",
    "How",
    "Positions",
    "SteeringVector",
    "Strength",
    "resolve_layers",
    "steered",
]
