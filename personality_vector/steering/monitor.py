"""Monitoring: how far a model is along a direction while it reads and writes."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from personality_vector.errors import DataError, NonFiniteError
from personality_vector.progress import progress
from personality_vector.steering.activations import (
    Pooling,
    Reader,
    Row,
    read_blocks,
    row_of,
)
from personality_vector.steering.apply import resolve_layers
from personality_vector.steering.fit import require_fit
from personality_vector.steering.vector import SteeringVector
from personality_vector.subject import Chat, batched
from personality_vector.subject.models import hidden_size


def projections(  # noqa: PLR0913  (a model, what it reads, and along what)
    model: Any,
    tokenizer: Any,
    chats: Sequence[Chat],
    vector: SteeringVector,
    layer: int,
    pooling: Pooling = "response_mean",
    batch_size: int = 16,
) -> Float64[Tensor, " chats"]:
    """Return ``a . v / |v|`` for each chat, ``a`` its pooled activation: in the unit of ``a``.

    ``prompt_last`` is what is known before the model generates, ``response_mean`` how far it went.
    Steering that is already active at ``layer`` is included.

    Args:
        model: A causal language model; not changed.
        tokenizer: The tokenizer of the model; it needs a chat template.
        chats: For ``response_mean`` each ends with a message of the assistant.
        vector: A vector with a direction for ``layer``; its length does not matter.
        layer: 0-based decoder block, ``-1`` the last.
        pooling: Which tokens' activations are averaged.
        batch_size: Chats per forward pass.

    Raises:
        ModelError: The model does not have this layer.
        TensorMismatchError: The vector has no direction for it.
        BaseMismatchError: The vector has another width than the model.
        DataError: A chat lacks the text that is pooled.
        NonFiniteError: An activation is NaN or infinite.

    Source:
        Monitoring of persona vectors, Chen et al. 2025, arXiv:2507.21509: ``<a, v> / |v|``.
    """
    place, unit = unit_at(model, vector, layer)
    pooled = Reader(model, tokenizer, [place], pooling, batch_size).pooled(chats)
    return pooled[place].double() @ unit


def creativity_scores(
    model: Any,
    tokenizer: Any,
    chats: Sequence[Chat],
    direction: Float[Tensor, " hidden"],
    layer: int,
    batch_size: int = 16,
) -> list[Float64[Tensor, " states"]]:
    """Return the cosines of which each response's score is the mean, read in teacher-forced passes.

    The score is ``(1 / (T + 1)) sum_{t=0..T} cos(LLM_l(x_t), a)``. ``t = 0`` is the output of
    block ``l`` at the last token of the input, so before anything is written; ``t = 1..T`` that at
    the ``t``-th token of the text, so after it is read. The marks that end a turn are not part
    of the text.

    Args:
        model: A causal language model; steering that is already active is included.
        tokenizer: The tokenizer of the model; it needs a chat template.
        chats: Each ends with a message of the assistant, whose content is the text.
        direction: The attribute ``a``, ``(hidden,)``, of any length but 0.
        layer: 0-based decoder block, ``-1`` the last.
        batch_size: Chats per forward pass.

    Raises:
        ModelError: The model does not have this layer.
        BaseMismatchError: The direction has another width than the model.
        DataError: The direction is zero, or a chat does not end with a text, or begins with it.
        NonFiniteError: The direction or an activation is NaN or infinite.

    Source:
        Olson et al. 2024, arXiv:2412.06060: the mean over ``t = 0..T`` of
        ``cos(normalised LLM_l(x_t), a)``, ``x_0`` the input, ``l = 8`` of Llama-3-8B. There is no
        public code. A cosine does not change when a state is divided by its norm, so we take
        "normalised" to add nothing; if it means a norm layer, theirs is another number. Their
        layers are shown as 0, 8, .. 32, so ``l = 8`` may count the embeddings: it is then block 7
        here. Whether the state after the last token counts is not said; it does here.
    """
    place, unit = unit_at(model, direction, layer)
    return _scored(model, tokenizer, chats, {place: unit}, batch_size)[place]


def creativity_by_layer(
    model: Any,
    tokenizer: Any,
    chats: Sequence[Chat],
    vector: SteeringVector,
    layers: Sequence[int],
    batch_size: int = 16,
) -> dict[int, Float64[Tensor, " chats"]]:
    """Return, for each layer, the score of every response: the mean of its cosines.

    One pass serves all layers. Arguments and errors are those of :func:`creativity_scores`, with
    the direction of ``vector`` at each of ``layers``.

    Raises:
        TensorMismatchError: The vector has no direction for a layer.
    """
    units = dict(unit_at(model, vector, layer) for layer in layers)
    found = _scored(model, tokenizer, chats, units, batch_size)
    return {layer: torch.stack([cosines.mean() for cosines in own]) for layer, own in found.items()}


def _scored(
    model: Any,
    tokenizer: Any,
    chats: Sequence[Chat],
    units: Mapping[int, Float64[Tensor, " hidden"]],
    batch_size: int,
) -> dict[int, list[Float64[Tensor, " states"]]]:
    """Return the cosines of each response with a unit vector at each layer."""
    rows = [_scored_row(tokenizer, chat) for chat in chats]
    found: dict[int, list[Float64[Tensor, " states"]]] = {layer: [] for layer in units}
    for batch in progress(list(batched(rows, batch_size)), "score replies"):
        states = read_blocks(model, batch, list(units), lambda rows: rows.cpu())
        for layer, unit in units.items():
            found[layer] += [_cosines(unit, own) for own in states[layer]]
    return found


def unit_at(
    model: nn.Module, given: SteeringVector | Float[Tensor, "..."], layer: int
) -> tuple[int, Float64[Tensor, " hidden"]]:
    """Return a layer as 0-based, and the unit vector of a direction there; float64, on the CPU.

    Raises:
        ModelError: The model does not have this layer.
        TensorMismatchError: The vector has no direction for it.
        BaseMismatchError: The direction has another width than the model.
        DataError: The direction is zero.
        NonFiniteError: It holds NaN or infinity.
    """
    (place,) = resolve_layers(model, [layer])
    direction = given[place] if isinstance(given, SteeringVector) else given
    require_fit(f"layer {place}", direction, hidden_size(model))
    exact = direction.detach().cpu().double()
    return place, exact / exact.norm()


def _scored_row(tokenizer: Any, chat: Chat) -> Row:
    """Return a chat up to the end of its text, with the states ``t = 0..T``."""
    whole = row_of(tokenizer, chat, "response_mean")
    begin, end = whole.prompt_end, whole.pooled[-1] + 1
    if begin < 1:
        raise DataError("a chat has no input before its text, so there is no state x_0")
    return Row(whole.ids[:end], begin, range(begin - 1, end))


def _cosines(
    unit: Float64[Tensor, " hidden"], states: Float[Tensor, "states hidden"]
) -> Float64[Tensor, " states"]:
    exact = states.double()
    cosines: Tensor = exact @ unit / exact.norm(dim=-1)
    if not torch.isfinite(cosines).all():
        token = int((~torch.isfinite(cosines)).int().argmax())
        raise NonFiniteError(
            f"the activation at t = {token} is zero, NaN or infinite, so its cosine is undefined"
        )
    return cosines
