"""Monitoring: how far a model is along a direction while it reads and writes."""

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor, nn

from personality_vector.errors import BaseMismatchError, DataError, NonFiniteError
from personality_vector.steering.activations import (
    Pooling,
    mean_activations,
    pooled_activations,
)
from personality_vector.steering.apply import hidden_states, resolve_layers
from personality_vector.steering.vector import SteeringVector
from personality_vector.steering.where import noting_start
from personality_vector.subject.chat import (
    Chat,
    encode_chats,
    render,
    right_padded,
)
from personality_vector.subject.models import (
    decoder_blocks,
    decoder_of,
    device_of,
    hidden_size,
    owner_of,
)
from personality_vector.subject.prompts import Prompts, current_prompts, reading
from personality_vector.subject.subject import Subject

_COLUMNS = 128
"""Columns whose cosines are taken at once: float64 is never held for a whole batch."""


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
    place, unit = _along(model, vector, layer)
    pooled = pooled_activations(model, tokenizer, chats, [place], pooling, batch_size)
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
    place, unit = _along(base, vector, layer)
    before = mean_activations(base, tokenizer, chats, [place], pooling)[place]
    if isinstance(tuned, nn.Module):
        _along(tuned, vector, layer)
        after = mean_activations(tuned, tokenizer, chats, [place], pooling)[place]
    else:
        with tuned as subject:
            edited = [subject.edit(chat) if subject else chat for chat in chats]
            after = mean_activations(base, tokenizer, edited, [place], pooling)[place]
    return float((after - before) @ unit)


def cosines_over_tokens(
    model: Any,
    tokenizer: Any,
    chat: Chat,
    direction: Float[Tensor, " hidden"],
    layer: int,
) -> Float64[Tensor, " tokens"]:
    """Return the cosine between a direction and the output of a block, at each token of a chat.

    A chat that does not end with a message of the assistant is read as ``generate`` reads it, up
    to the marks that open the reply. Steering that is already entered is seen.

    Raises:
        ModelError: The model has no such layer.
        BaseMismatchError: The direction has another width than the model.
        DataError: The direction is zero, or the chat cannot be rendered.
        NonFiniteError: The direction or an activation is NaN or infinite.
    """
    if chat and chat[-1]["role"] == "assistant":
        encoded = encode_chats(tokenizer, [chat])
        ids, end = encoded.input_ids[0], encoded.prompts.ends[0]
    else:
        text = render(tokenizer, chat, reply_follows=True)
        ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"])
        end = len(ids)
    return cosines_of_tokens(model, [ids], [end], direction, layer)[0]


@torch.no_grad()
def cosines_of_tokens(
    model: Any,
    rows: Sequence[Int[Tensor, " _"]],
    prompt_ends: Sequence[int],
    direction: Float[Tensor, " hidden"],
    layer: int,
) -> list[Float64[Tensor, " _"]]:
    """Return the cosines at each token of each row, read in one teacher-forced pass.

    Args:
        model: A causal language model.
        rows: Token ids, without padding.
        prompt_ends: Of each row, the first token that is not prompt any more.
        direction: ``(hidden,)``, of any length but 0.
        layer: 0-based decoder block, ``-1`` the last.

    Raises:
        As :func:`cosines_over_tokens`.
    """
    ids, mask = right_padded(rows)
    decoder = decoder_of(model)
    device = device_of(model)
    with watching(model, direction, layer) as cosines, reading(Prompts.of(ids, mask, prompt_ends)):
        decoder(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    found = cosines.table.cpu()
    return [_finite(row[: len(given)], layer) for row, given in zip(found, rows, strict=True)]


class Cosines:
    """The cosines of what a model read last, as they come.

    Attributes:
        table: ``(rows, columns)``, a number for each token that was read, padding included, where
            it means nothing. A pass that starts at column 0 starts anew, one that continues a
            cache adds columns.
        prompts: What was said to be the prompts of those rows, if anything.
    """

    def __init__(self, unit: Float64[Tensor, " hidden"]) -> None:
        self._unit = unit
        self._start = 0
        self.table: Float64[Tensor, "rows columns"] = torch.empty(0, 0, dtype=torch.float64)
        self.prompts: Prompts | None = None

    def begin(self, start: int) -> None:
        """Take note that the coming chunk starts at column ``start``."""
        if start > self.table.shape[1]:
            raise DataError(
                f"a pass starts at column {start}, but {self.table.shape[1]} columns were seen: "
                "start to watch before the prompt is read"
            )
        self._start = start
        self.prompts = current_prompts()

    def add(self, _block: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        """Add what a block puts out; a forward hook."""
        hidden = hidden_states(output).detach()
        unit = self._unit.to("cpu" if hidden.is_mps else hidden.device)  # MPS has no float64
        starts = range(0, hidden.shape[1], _COLUMNS)
        parts = (hidden[:, start : start + _COLUMNS].to(unit.device) for start in starts)
        chunk = torch.cat([_cosines(part, unit) for part in parts], dim=1)
        seen = self.table[:, : self._start].to(chunk.device)
        self.table = torch.cat([seen, chunk], dim=1) if self._start else chunk


@contextmanager
def watching(
    model: nn.Module, direction: Float[Tensor, " hidden"], layer: int
) -> Generator[Cosines]:
    """Take the cosine between a direction and the output of a block, in every forward pass.

    The hook is put behind all others of the block at the start of each pass, so that steering is
    seen whether it was entered before or after. ``output_hidden_states`` would not see it.

    Raises:
        ModelError: The model has no such layer.
        BaseMismatchError: The direction has another width than the model.
        DataError: The direction is zero.
        NonFiniteError: It holds NaN or infinity.
    """
    (place,) = resolve_layers(model, [layer])
    cosines = Cosines(_unit(model, direction, place))
    blocks = decoder_blocks(model)
    owner = owner_of(model, blocks)
    with ExitStack() as last:

        def begin(start: int) -> None:
            cosines.begin(start)
            last.close()
            last.callback(blocks[place].register_forward_hook(cosines.add).remove)

        handle = owner.register_forward_pre_hook(noting_start(owner, begin), with_kwargs=True)
        try:
            yield cosines
        finally:
            handle.remove()


def _cosines(
    hidden: Float[Tensor, "rows seq hidden"], unit: Float64[Tensor, " hidden"]
) -> Float64[Tensor, "rows seq"]:
    exact = hidden.double()
    cosines: Tensor = exact @ unit / exact.norm(dim=-1)
    return cosines


def _along(model: nn.Module, vector: SteeringVector, layer: int) -> tuple[int, Tensor]:
    """Return the 0-based layer and the unit vector of its direction, float64."""
    (place,) = resolve_layers(model, [layer])
    return place, _unit(model, vector[place], place)


def _unit(
    model: nn.Module, direction: Float[Tensor, "..."], layer: int
) -> Float64[Tensor, " hidden"]:
    if direction.shape != (hidden_size(model),):
        raise BaseMismatchError(
            f"layer {layer}: the direction has shape {list(direction.shape)}, but the residual "
            f"stream of this model is {hidden_size(model)} wide"
        )
    exact = direction.detach().cpu().double()
    if not torch.isfinite(exact).all():
        raise NonFiniteError(f"layer {layer}: the direction holds NaN or infinity")
    if not exact.any():
        raise DataError(f"layer {layer}: the direction is zero, so it points nowhere")
    unit: Tensor = exact / exact.norm()
    return unit


def _finite(cosines: Float64[Tensor, " tokens"], layer: int) -> Float64[Tensor, " tokens"]:
    if not torch.isfinite(cosines).all():
        token = int((~torch.isfinite(cosines)).int().argmax())
        raise NonFiniteError(
            f"layer {layer}: the activation at token {token} is zero, NaN or infinite, "
            "so it has no cosine"
        )
    return cosines
