"""Checks that layers, directions and models fit together."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from personality_vector.checkpoint import Checkpoint
from personality_vector.errors import (
    BaseMismatchError,
    DataError,
    ModelError,
    NonFiniteError,
    TensorMismatchError,
)

Directions = Mapping[int, Float[Tensor, "..."]]
"""0-based decoder block to a float32 direction ``(hidden,)`` on the CPU."""


def resolved(layers: Sequence[int], count: int) -> tuple[int, ...]:
    """Return 0-based layers of a model of ``count`` blocks, in the order given; ``-1`` is the last.

    Raises:
        ModelError: The model does not have one of these blocks.
        DataError: No layer is given, or one is given twice.
    """
    for layer in layers:
        if not -count <= layer < count:
            raise ModelError(no_such_layer(layer, count))
    found = tuple(layer % count for layer in layers)
    if not found:
        raise DataError("no layer was given; name at least one decoder block, such as 12")
    if len(set(found)) < len(found):
        raise DataError(f"layers {list(layers)} name the same block twice; name each block once")
    return found


def no_such_layer(layer: int, count: int) -> str:
    """Return the message about a layer that a model of ``count`` blocks does not have."""
    return f"layer {layer} does not exist: this model has {count} blocks, 0 to {count - 1}"


def checked(directions: Directions, label: str) -> dict[int, Tensor]:
    """Return a copy with ascending layers.

    Raises:
        DataError: There is no layer, a layer is negative, or a direction is zero.
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
            raise DataError(f"{where}: stored layers count from 0; resolve negative ones first")
        if direction.shape != (hidden,) or direction.dtype != torch.float32:
            raise TensorMismatchError(
                f"{where}: should be {hidden} float32 numbers, "
                f"but is {direction.dtype} of shape {list(direction.shape)}"
            )
        require_direction(where, direction)
    return ordered


def orthonormal(directions: Sequence[Tensor]) -> list[Float[Tensor, " hidden"]]:
    """Return an orthonormal basis of what directions span; float32, computed in float64.

    What lies within 1e-6 of its length in the span of those before adds nothing to the basis.
    """
    basis: list[Tensor] = []
    for direction in directions:
        rest = direction.double()
        for _ in range(2):  # twice is enough for orthogonality to rounding
            for unit in basis:
                rest = rest - (rest @ unit) * unit
        if rest.norm() > 1e-6 * direction.double().norm():
            basis.append(rest / rest.norm())
    return [unit.float() for unit in basis]


def outside(
    direction: Float[Tensor, " hidden"], others: Sequence[Tensor]
) -> Float[Tensor, " hidden"]:
    """Return ``v - B B^T v``, with an orthonormal basis ``B`` of the span of ``others``.

    float32, computed in float64; zero where nothing but rounding is left.
    """
    rest = direction.double()
    for unit in orthonormal(others):
        rest = rest - (rest @ unit.double()) * unit.double()
    is_left = rest.norm() > 1e-6 * direction.double().norm()
    return rest.float() if is_left else torch.zeros_like(direction)


def require_one_space(one: Any, other: Any) -> None:
    """Check that two steering vectors are of the same model.

    Raises:
        BaseMismatchError: They are of different models.
        TensorMismatchError: Their widths differ.
    """
    if one.model != other.model:
        ours, theirs = (vector.model[:12] or "unknown" for vector in (one, other))
        raise BaseMismatchError(
            f"{one.label} is of model {ours} and {other.label} of model {theirs}; "
            "only vectors of one model can be compared or combined"
        )
    if one.hidden != other.hidden:
        raise TensorMismatchError(
            f"{one.label} is {one.hidden} wide and {other.label} is {other.hidden}; "
            "only vectors of one model can be compared or combined"
        )


def require_fit(where: str, direction: Float[Tensor, "..."], width: int) -> None:
    """Check that a direction is not zero and fits a residual stream of this width.

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
    require_direction(where, direction)


def require_direction(where: str, direction: Float[Tensor, "..."]) -> None:
    """Check that a direction is finite and not zero; see :func:`require_fit`."""
    if not torch.isfinite(direction).all():
        raise NonFiniteError(f"{where}: the direction holds NaN or infinity")
    if not direction.any():
        raise DataError(f"{where}: the direction is zero; a direction must have a length")


def require_made_from(
    what: object,
    model: str,
    checkpoint: Checkpoint,
    remedy: str = "use it with the model that it was extracted from",
) -> None:
    """Check that something was extracted from this model; see :meth:`Checkpoint.require_recorded`.

    Args:
        what: Its file or label, for the message.
        model: Hex digest of the fingerprint of the model it came from; if it is "" (unknown),
            nothing is refused.
        checkpoint: The model that it is to be used with.
        remedy: What the message suggests.

    Raises:
        BaseMismatchError: It was extracted from another one.
    """
    if model:
        checkpoint.require_recorded(model, what, "extracted from model", remedy)


def require_width(what: object, width: int, checkpoint: Checkpoint) -> None:
    """Check that a vector is as wide as the residual stream of a model, before it is loaded.

    Raises:
        BaseMismatchError: config.json says another width.
    """
    config = checkpoint.config.get("text_config", checkpoint.config)
    stream = config.get("hidden_size", config.get("n_embd", width))
    if stream != width:
        raise BaseMismatchError(
            f"{what}: is {width} wide, but the residual stream of {checkpoint.path} is {stream} "
            "wide; use it with the model that it was extracted from"
        )


def block_numbers(layers: Sequence[int], checkpoint: Checkpoint) -> tuple[int, ...]:
    """Return 0-based layers in the order given, before the model is loaded; ``-1`` is the last.

    Returns nothing if config.json does not say how many blocks there are.

    Raises:
        ModelError: The model does not have one of these blocks.
        DataError: No layer is given, or one is given twice.
    """
    config = checkpoint.config.get("text_config", checkpoint.config)
    counts = [
        config[key] for key in ("num_hidden_layers", "n_layer", "num_layers") if key in config
    ]
    return resolved(layers, int(counts[0])) if counts else ()


def require_same_shape(base: Any, tuned: Any) -> None:
    """Check that two models have the same depth, width and vocabulary.

    Args:
        base: The configuration of one, as transformers reads it.
        tuned: That of the other.

    Raises:
        TensorMismatchError: They differ, so their activations cannot be subtracted.
    """
    texts = [config.get_text_config() for config in (base, tuned)]
    one, other = (
        f"{text.num_hidden_layers} blocks of width {text.hidden_size} "
        f"and a vocabulary of {text.vocab_size}"
        for text in texts
    )
    if one != other:
        names = [config.name_or_path or type(config).__name__ for config in (base, tuned)]
        raise TensorMismatchError(
            f"{names[0]} has {one}, {names[1]} has {other}; "
            "only a model and what was fine-tuned from it can be subtracted"
        )
