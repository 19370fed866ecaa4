"""Steering: directions in the residual stream, how to find them and how to act with them."""

from personality_vector.steering.activations import Pooling
from personality_vector.steering.apply import (
    EDITS,
    ByRow,
    Hook,
    How,
    Strength,
    hidden_states,
    require_no_foreign_hooks,
    resolve_layers,
    steered,
)
from personality_vector.steering.fit import block_numbers, require_made_from, require_width
from personality_vector.steering.vector import SteeringVector
from personality_vector.steering.where import ALL, Gate, Positions, Where

__all__ = [
    "ALL",
    "EDITS",
    "ByRow",
    "Gate",
    "Hook",
    "How",
    "Pooling",
    "Positions",
    "SteeringVector",
    "Strength",
    "Where",
    "block_numbers",
    "hidden_states",
    "require_made_from",
    "require_no_foreign_hooks",
    "require_width",
    "resolve_layers",
    "steered",
]
