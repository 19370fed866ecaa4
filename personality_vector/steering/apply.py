"""Changing the outputs of decoder blocks while a model runs, and leaving nothing behind."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from personality_vector.errors import BaseMismatchError, DataError, ModelError, NonFiniteError
from personality_vector.models import decoder_blocks, hidden_size
from personality_vector.steering.positions import ALL, Positions
from personality_vector.steering.where import Gate, Where

Hook = Callable[[nn.Module, tuple[Any, ...], Any], Any]
"""A forward hook: what it returns, unless ``None``, takes the place of the output."""

How = Literal["add", "add_keeping_norm", "ablate"]
"""What is done with a direction: see :data:`EDITS`."""

Strength = float | Sequence[float] | Tensor
"""One coefficient, or one for each row of the batch."""

_KNOWN = ("personality_vector", "transformers", "accelerate", "peft", "torch")
"""Packages whose hooks on a block are no left-overs."""

Hidden = Float[Tensor, "rows seq hidden"]
Edit = Callable[[Hidden, Float[Tensor, " hidden"], float | Tensor], Hidden]


def added(hidden: Hidden, direction: Tensor, strength: float | Tensor) -> Hidden:
    """Return ``h + strength * v``."""
    moved: Tensor = hidden + strength * direction
    return moved


def added_keeping_norm(hidden: Hidden, direction: Tensor, strength: float | Tensor) -> Hidden:
    """Return ``h' * |h| / |h'|`` with ``h' = h + strength * v``; norms in float32."""
    moved: Tensor = hidden + strength * direction
    before, after = (h.float().norm(dim=-1, keepdim=True) for h in (hidden, moved))
    scale = before / after.clamp_min(torch.finfo(torch.float32).tiny)
    kept: Tensor = moved * scale.to(hidden.dtype)
    return kept


def ablated(hidden: Hidden, direction: Tensor, strength: float | Tensor) -> Hidden:
    """Return ``h - strength * (h . q) q`` with ``q = v / |v|``; 1 removes the direction."""
    unit = direction.float() / direction.float().norm()
    along = (hidden.float() @ unit)[..., None] * unit
    left: Tensor = hidden - strength * along.to(hidden.dtype)
    return left


EDITS: dict[How, Edit] = {
    "add": added,
    "add_keeping_norm": added_keeping_norm,
    "ablate": ablated,
}
"""Source of the ablation: Arditi et al. 2024, arXiv:2406.11717. Of the norm: repeng's option."""


@contextmanager
def steered(
    model: nn.Module,
    directions: Mapping[int, Tensor],
    strength: Strength = 1.0,
    *,
    positions: Positions = ALL,
    how: How = "add",
    gate: Gate | None = None,
) -> Generator[None]:
    """Steer the outputs of some decoder blocks while the ``with`` block runs.

    The logits are those of one model: the same cached and uncached, whole and in chunks, batched
    and single, padded left and right, generated and teacher-forced. A row of strength 0 is the
    plain model bit for bit. Two nested contexts act one after the other.

    Inside ``model.generate`` the prompt is known. Around any other forward pass say it with
    :func:`personality_vector.reading.reading`, unless ``positions`` are ``all``.

    Args:
        model: Edited by forward hooks only; they are gone afterwards, also after an exception.
        directions: 0-based decoder block to a vector ``(hidden,)``, in the unit of the activation.
            It is cast to dtype and device of the output.
        strength: The coefficient, or one for each row of the batch; beams and samples of a row
            have that of their row.
        positions: Which tokens.
        how: ``add``, ``add_keeping_norm`` or ``ablate``.
        gate: Which rows, decided by their prompts; then only responses can be steered.

    Raises:
        ModelError: The model has no such block, or its blocks cannot be found.
        BaseMismatchError: A vector has another width than the model.
        NonFiniteError: A vector or strength is NaN or infinite.
        DataError: A strength for each row and the rows of a batch do not agree; or the positions
            need a prompt that nobody told, or select no token of it.

    Source:
        Persona vectors, Chen et al. 2025, arXiv:2507.21509: ``h_l <- h_l + alpha * v_l``.
        Deviation: positions are those of the sequence. Their code adds to the last position of
        each forward call, so that a teacher-forced pass and a cached generation are two models.
    """
    blocks = decoder_blocks(model)
    amounts = _amounts(strength)
    for layer, direction in directions.items():
        _require_fit(model, layer, len(blocks), direction, amounts)
    _require_no_strangers(blocks)
    with ExitStack() as hooks:
        where = Where(positions, amounts, gate)
        if isinstance(amounts, Tensor) or amounts != 0:
            where.watch(model, blocks, hooks, min(directions, default=0))
            for layer, direction in directions.items():
                if direction.any():
                    hook = _hook(direction.detach(), amounts, EDITS[how], where)
                    hooks.callback(blocks[layer].register_forward_hook(hook).remove)
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


def _hook(direction: Tensor, amounts: float | Tensor, edit: Edit, where: Where) -> Hook:
    scaled = edit is added and isinstance(amounts, float)
    whole = amounts * direction if scaled else direction
    cast = whole

    def steer(_block: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        nonlocal cast
        hidden = hidden_states(output)
        if cast.dtype != hidden.dtype or cast.device != hidden.device:
            cast = whole.to(hidden.device, hidden.dtype)
        chosen = where.selected(hidden)
        if chosen is False:
            return None
        moved = hidden + cast if scaled else edit(hidden, cast, where.strength(hidden))
        if isinstance(chosen, Tensor):
            moved = torch.where(chosen.to(hidden.device), moved, hidden)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return steer


def _amounts(strength: Strength) -> float | Tensor:
    amounts = torch.as_tensor(strength, dtype=torch.float64).cpu()
    if not torch.isfinite(amounts).all():
        raise NonFiniteError(f"the strength must be a finite number, got {strength}")
    if amounts.ndim > 1 or not amounts.numel():
        raise DataError(f"the strength has shape {list(amounts.shape)}; give a number, or [rows]")
    return amounts if amounts.ndim else float(amounts)


def _require_fit(
    model: nn.Module, layer: int, count: int, direction: Tensor, amounts: float | Tensor
) -> None:
    if not 0 <= layer < count:
        raise ModelError(_no_such_layer(layer, count))
    width = hidden_size(model)
    if direction.shape != (width,):
        raise BaseMismatchError(
            f"layer {layer}: the vector has shape {list(direction.shape)}, but the residual stream "
            f"of this model is {width} wide; use a vector that was extracted from this model"
        )
    largest = torch.as_tensor(amounts).abs().max() * direction.detach().abs().max().cpu()
    if not torch.isfinite(largest):
        raise NonFiniteError(f"layer {layer}: the vector to add holds NaN or infinity")


def _require_no_strangers(blocks: nn.ModuleList) -> None:
    """Refuse hooks that another tool left behind: the two would add up unseen."""
    for layer, block in enumerate(blocks):
        for hook in (*block._forward_hooks.values(), *block._forward_pre_hooks.values()):
            owner = getattr(hook, "__module__", "") or type(hook).__module__
            if owner.partition(".")[0] not in _KNOWN:
                raise ModelError(
                    f"block {layer} already has a hook of {owner}, which may steer the model too; "
                    "remove it, or load the model again"
                )


def _no_such_layer(layer: int, count: int) -> str:
    return f"layer {layer} does not exist: this model has {count} blocks, 0 to {count - 1}"
