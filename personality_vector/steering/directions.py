"""Directions by layer, without what is known about them: checks and arithmetic."""

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from personality_vector.errors import (
    BaseMismatchError,
    DataError,
    NonFiniteError,
    TensorMismatchError,
)

Directions = Mapping[int, Float[Tensor, "..."]]
"""0-based decoder block to a float32 direction ``(hidden,)`` on the CPU."""


def checked(directions: Directions, label: str) -> dict[int, Tensor]:
    """Return a copy with ascending layers.

    Raises:
        DataError: No layer, a negative one, or a direction of zero, which points nowhere.
        NonFiniteError: A direction holds NaN or infinity.
        TensorMismatchError: A direction is not one float32 vector, or widths differ.
    """
    if not directions:
        raise DataError(f"{label}: a steering vector needs at least one layer")
    ordered = dict(sorted(directions.items()))
    hidden = next(iter(ordered.values())).numel()
    for layer, direction in ordered.items():
        where = f"{label or 'steering vector'}, layer {layer}"
        if layer < 0:
            raise DataError(f"{where}: a stored layer is 0-based; resolve negative ones first")
        if direction.shape != (hidden,) or direction.dtype != torch.float32:
            raise TensorMismatchError(
                f"{where}: should be {hidden} float32 numbers, "
                f"is {direction.dtype} of shape {list(direction.shape)}"
            )
        require_pointing(where, direction)
    return ordered


def combined(one: Directions, other: Directions, sign: float) -> dict[int, Tensor]:
    """Return ``one + sign * other``.

    Raises:
        TensorMismatchError: The two do not cover the same layers.
    """
    odd = set(one) ^ set(other)
    if odd:
        raise TensorMismatchError(
            f"the two do not cover the same layers: only one of them has {sorted(odd)}"
        )
    return {layer: one[layer] + sign * other[layer] for layer in one}


def rescaled(directions: Directions, norms: Mapping[int, float]) -> dict[int, Tensor]:
    """Return the directions with these Euclidean norms; rounded once.

    Raises:
        TensorMismatchError: The norms are not of just these layers.
        NonFiniteError: A norm is not a positive number.
    """
    odd = set(directions) ^ set(norms)
    if odd:
        raise TensorMismatchError(f"norms are needed for just the layers, wrong are {sorted(odd)}")
    for layer, norm in norms.items():
        if not 0 < norm < math.inf:
            raise NonFiniteError(f"layer {layer}: a direction cannot be given the norm {norm}")
    exact = {layer: direction.double() for layer, direction in directions.items()}
    return {layer: (norms[layer] / v.norm() * v).float() for layer, v in exact.items()}


def incremental(directions: Directions) -> dict[int, Tensor]:
    """Return ``v_l - v_k``, ``k`` the layer before ``l``; the first layer keeps its own."""
    layers = sorted(directions)
    before = dict(zip(layers[1:], layers, strict=False))
    return {
        layer: directions[layer] - directions[before[layer]] if layer in before else direction
        for layer, direction in directions.items()
    }


def cosine(one: Float[Tensor, " hidden"], other: Float[Tensor, " hidden"]) -> float:
    """Return the cosine of the angle between two directions."""
    a, b = one.double(), other.double()
    return float(a @ b / (a.norm() * b.norm()))


def require_fit(where: str, direction: Float[Tensor, "..."], width: int) -> None:
    """Check that a direction points somewhere in a residual stream of this width.

    Raises:
        BaseMismatchError: It has another shape.
        NonFiniteError: It holds NaN or infinity.
        DataError: It is zero.
    """
    if direction.shape != (width,):
        raise BaseMismatchError(
            f"{where}: the vector has shape {list(direction.shape)}, but the residual stream "
            f"of this model is {width} wide; use a vector that was extracted from this model"
        )
    require_pointing(where, direction)


def require_pointing(where: str, direction: Float[Tensor, "..."]) -> None:
    """Check that a direction is of finite numbers, not all zero; see :func:`require_fit`."""
    if not torch.isfinite(direction).all():
        raise NonFiniteError(f"{where}: the direction holds NaN or infinity")
    if not direction.any():
        raise DataError(f"{where}: the direction is zero, so it points nowhere")
