"""Monitoring: how far a model is along a direction while it reads and writes."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from jaxtyping import Float, Float64
from torch import Tensor, nn

from personality_vector.steering.activations import Pooling, chat_reader
from personality_vector.steering.apply import resolve_layers
from personality_vector.steering.directions import require_fit
from personality_vector.steering.vector import SteeringVector
from personality_vector.subject.chat import Chat
from personality_vector.subject.models import hidden_size
from personality_vector.subject.subject import Subject


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
    Steering of ``layer`` by a context that is already entered is seen.

    Args:
        model: A causal language model; not changed.
        tokenizer: With a chat template.
        chats: For ``response_mean`` each ends with a message of the assistant.
        vector: With a direction for ``layer``; its length does not matter.
        layer: 0-based decoder block, ``-1`` the last.
        pooling: Which tokens' activations are averaged.
        batch_size: Chats per forward pass.

    Raises:
        ModelError: The model has no such layer.
        TensorMismatchError: The vector has no direction for it.
        BaseMismatchError: The vector has another width than the model.
        DataError: A chat has not what is pooled.
        NonFiniteError: An activation is NaN or infinite.

    Source:
        Monitoring of persona vectors, Chen et al. 2025, arXiv:2507.21509: ``<a, v> / |v|``.
    """
    place, unit = unit_at(model, vector, layer)
    pooled = chat_reader(model, tokenizer, [place], pooling, batch_size).pooled(chats)
    return pooled[place].double() @ unit


def finetuning_shift(  # noqa: PLR0913  (two models, what they read, and along what)
    base: Any,
    tuned: nn.Module | AbstractContextManager[Subject | None],
    tokenizer: Any,
    chats: Sequence[Chat],
    vector: SteeringVector,
    layer: int,
    pooling: Pooling = "prompt_last",
) -> float:
    """Return ``(mean a_tuned - mean a_base) . v / |v|``, in the unit of the activation.

    Args:
        base: The model that was fine-tuned; not changed.
        tuned: What it became; or a context in which ``base`` itself is changed, such as
            ``intervention.applied(Subject(base, tokenizer), 1.0)``, whose edit of the chats is
            applied as well.
        tokenizer: Of both, with a chat template.
        chats: What both read. At least one.
        vector: With a direction for ``layer``.
        layer: 0-based decoder block, ``-1`` the last.
        pooling: Which tokens' activations are averaged. ``prompt_last`` asks what the model is
            about to say, without a response that one of the two would not have given.

    Raises:
        As :func:`projections`; BaseMismatchError also where ``tuned`` has another width.

    Source:
        Finetuning shift of persona vectors, Chen et al. 2025, arXiv:2507.21509: the projection of
        the mean activation change on the direction. Not in their code; which tokens are averaged
        there could not be checked, so our default is a choice.
    """
    place, unit = unit_at(base, vector, layer)
    reader = chat_reader(base, tokenizer, [place], pooling)
    before = reader.mean(chats)
    if isinstance(tuned, nn.Module):
        unit_at(tuned, vector, layer)
        after = replace(reader, model=tuned).mean(chats)
    else:
        with tuned as subject:
            after = reader.mean([subject.edit(chat) if subject else chat for chat in chats])
    return float((after[place] - before[place]) @ unit)


def unit_at(
    model: nn.Module, given: SteeringVector | Float[Tensor, "..."], layer: int
) -> tuple[int, Float64[Tensor, " hidden"]]:
    """Return a layer as 0-based, and the unit vector of a direction there; float64, on the CPU.

    Raises:
        ModelError: The model has no such layer.
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
