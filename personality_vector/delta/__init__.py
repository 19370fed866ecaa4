"""Deltas: fine-tuned minus base, tensor by tensor, and their algebra."""

from personality_vector.delta.delta import Delta
from personality_vector.delta.opening import open_delta

__all__ = ["Delta", "open_delta"]
