"""Adding constant vectors to the outputs of decoder blocks, and taking them away again."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from personality_vector.errors import BaseMismatchError, DataError, ModelError, NonFiniteError
from personality_vector.models import decoder_blocks, hidden_size

Hook = Callable[[nn.Module, tuple[Any, ...], Any], Any]
"""A forward hook: what it returns, unless ``None``, takes the place of the output."""


@contextmanager
def steered(model: nn.Module, additions: Mapping[int, Tensor]) -> Generator[None]:
    """Add a constant vector to the output of each named block while the ``with`` block runs.

    It is added at every position of every row, of the prompt and of the reply, so the logits are
    the same cached and uncached, batched and single, generated and teacher-forced. An addition of
    zero registers nothing, so the logits are those of the plain model bit for bit. Two nested
    contexts add up.

    Args:
        model: Edited by forward hooks only; they are gone afterwards, also after an exception.
        additions: 0-based decoder block to a vector ``(hidden,)``, in the unit of the activation:
            the coefficient is already in it. It is cast once to dtype and device of the output.

    Raises:
        ModelError: The model has no such block, or its blocks cannot be found.
        BaseMismatchError: A vector has another width than the model.
        NonFiniteError: A vector holds NaN or infinity.

    Source:
        Persona vectors, Chen et al. 2025, arXiv:2507.21509: ``h_l <- h_l + alpha * v_l``.
        Deviation: all positions. Their code adds to the last position of each forward call, so
        that a teacher-forced pass and a cached generation are two different models.
    """
    blocks = decoder_blocks(model)
    for layer, addition in additions.items():
        _require_fit(model, layer, len(blocks), addition)
    with ExitStack() as hooks:
        for layer, addition in additions.items():
            if addition.any():
                handle = blocks[layer].register_forward_hook(_adding(addition.detach()))
                hooks.callback(handle.remove)
        yield


def resolve_layers(model: nn.Module, layers: Sequence[int]) -> tuple[int, ...]:
    """Return 0-based layers in the order given; ``-1`` is the last block.

    Raises:
        ModelError: The model has no such block.
        DataError: No layer is given, or one twice.
    """
    count = len(decoder_blocks(model))
    for layer in layers:
        if not -count <= layer < count:
            raise ModelError(_no_such_layer(layer, count))
    resolved = tuple(layer % count for layer in layers)
    if not resolved:
        raise DataError("no layer is given; name at least one decoder block, such as [12]")
    if len(set(resolved)) < len(resolved):
        raise DataError(f"layers {list(layers)} of {count} blocks name the same block twice")
    return resolved


def hidden_states(output: Any) -> Float[Tensor, "batch seq hidden"]:
    """Return the residual stream in a block's output: a tensor, or the first item of a tuple."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _adding(addition: Float[Tensor, " hidden"]) -> Hook:
    cast = addition

    def add(_block: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        nonlocal cast
        hidden = hidden_states(output)
        if cast.dtype != hidden.dtype or cast.device != hidden.device:
            cast = addition.to(hidden.device, hidden.dtype)
        moved = hidden + cast
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return add


def _require_fit(model: nn.Module, layer: int, count: int, addition: Tensor) -> None:
    if not 0 <= layer < count:
        raise ModelError(_no_such_layer(layer, count))
    width = hidden_size(model)
    if addition.shape != (width,):
        raise BaseMismatchError(
            f"layer {layer}: the vector has shape {list(addition.shape)}, but the residual stream "
            f"of this model is {width} wide; use a vector that was extracted from this model"
        )
    if not torch.isfinite(addition).all():
        raise NonFiniteError(f"layer {layer}: the vector to add holds NaN or infinity")


def _no_such_layer(layer: int, count: int) -> str:
    return f"layer {layer} does not exist: this model has {count} blocks, 0 to {count - 1}"
