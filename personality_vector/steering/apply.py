"""Changing the outputs of decoder blocks while a model runs, and leaving nothing behind."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from personality_vector.errors import DataError, ModelError, NonFiniteError, RecipeError
from personality_vector.steering.fit import no_such_layer, require_fit, resolved
from personality_vector.steering.where import ALL, Gate, Positions, Where
from personality_vector.subject.models import decoder_blocks, hidden_size, owner_of

Hook = Callable[[nn.Module, tuple[Any, ...], Any], Any]
"""A forward hook: what it returns, unless ``None``, takes the place of the output."""

How = Literal["add", "add_keeping_norm", "ablate"]
"""What is done with a direction: see :data:`EDITS`."""

Strength = float | Sequence[float] | Tensor
"""One coefficient, or one for each row of the batch."""


class ByRow(tuple[float, ...]):
    """Coefficients that rows may have: that of a row is stated with its prompt (``Prompts``)."""


# Packages whose hooks on a block do not steer.
_KNOWN = ("personality_vector", "transformers", "accelerate", "peft", "torch")

Hidden = Float[Tensor, "rows seq hidden"]
Amount = float | Float[Tensor, "rows 1 1"]
Edit = Callable[[Hidden, Float[Tensor, " hidden"], Amount], Hidden]


def _wide(values: Tensor) -> Tensor:
    """Return values in float32, or in float64 if they already are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def added(hidden: Hidden, direction: Tensor, strength: Amount) -> Hidden:
    """Return ``h + strength * v``; the product is rounded once, to the dtype of ``h``."""
    return hidden + (strength * direction).to(hidden.dtype)


def added_keeping_norm(hidden: Hidden, direction: Tensor, strength: Amount) -> Hidden:
    """Return ``h' * |h| / |h'|`` with ``h' = h + strength * v``, in float32, rounded once."""
    moved = _wide(hidden) + strength * direction
    before, after = (h.norm(dim=-1, keepdim=True) for h in (_wide(hidden), moved))
    return moved.mul(before / after.clamp_min(torch.finfo(torch.float32).tiny)).to(hidden.dtype)


def ablated(hidden: Hidden, direction: Tensor, strength: Amount) -> Hidden:
    """Return ``h - strength * (h . q) q`` with ``q = v / |v|``; 1 removes the direction."""
    unit = direction / direction.norm()
    wide = _wide(hidden)
    with torch.autocast(wide.device.type, enabled=False):  # training may round products to bfloat16
        along = (wide @ unit.to(wide.dtype))[..., None] * unit
    return torch.sub(wide, strength * along).to(hidden.dtype)


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

    Inside ``model.generate`` the prompt is known. Around any other forward pass, state it with
    :func:`personality_vector.subject.prompts.reading`, unless ``positions`` are ``all``.

    Args:
        model: Edited by forward hooks only; they are gone afterwards, also after an exception.
        directions: 0-based decoder block to a vector ``(hidden,)``, in the unit of the activation.
            Their product with the strength is float32, then rounded to the dtype of the output.
        strength: The coefficient, or one for each row of the batch; the beams and samples of a
            row share its coefficient. With :class:`ByRow` it is stated anew for each batch.
        positions: Which tokens are steered.
        how: ``add``, ``add_keeping_norm`` or ``ablate``.
        gate: Steers only the rows whose prompt opens it, and then only their responses.

    Raises:
        ModelError: The model does not have this block, its blocks cannot be found, another tool
            left hooks on them, or the columns of a chunk are unknown in this model, which only
            ``all`` can steer.
        BaseMismatchError: A vector has another width than the model.
        NonFiniteError: A vector or strength is NaN or infinite, or the dtype of the model cannot
            hold their product.
        RecipeError: ``how`` is unknown.
        DataError: No direction is given, or one is zero; the number of strengths does not match
            the rows of a batch; or the positions need a prompt that is unknown, or select none of
            its tokens.

    Source:
        Persona vectors, Chen et al. 2025, arXiv:2507.21509: ``h_l <- h_l + alpha * v_l``.
        Deviation: positions are those of the sequence. Their code adds to the last position of
        each forward call, so that a teacher-forced pass and a cached generation are two models.
    """
    blocks, amounts = decoder_blocks(model), _amounts(strength)
    if how not in EDITS:
        raise RecipeError(f"how: must be one of {', '.join(EDITS)}, got {how!r}")
    if not directions:
        raise DataError("no direction was given, so nothing would be steered; give at least one")
    for layer, direction in directions.items():
        if not 0 <= layer < len(blocks):
            raise ModelError(no_such_layer(layer, len(blocks)))
        require_fit(f"layer {layer}", direction, hidden_size(model))
        if how == "add":
            _require_room(model, layer, direction, amounts)
    require_no_foreign_hooks(model)
    with ExitStack() as hooks:
        where = Where(positions, None if isinstance(strength, ByRow) else amounts, gate)
        if isinstance(amounts, Tensor) or amounts != 0:
            where.watch(model, blocks, hooks, min(directions))
            for layer, direction in directions.items():
                hook = _hook(direction.detach(), amounts, EDITS[how], where)
                hooks.callback(blocks[layer].register_forward_hook(hook).remove)
        yield


def resolve_layers(model: nn.Module, layers: Sequence[int]) -> tuple[int, ...]:
    """Return 0-based layers in the order given; ``-1`` is the last block.

    Raises:
        ModelError: The model does not have one of these blocks.
        DataError: No layer is given, or one is given twice.
    """
    return resolved(layers, len(decoder_blocks(model)))


def hidden_states(output: Any) -> Float[Tensor, "batch seq hidden"]:
    """Return the residual stream in a block's output: a tensor, or the first item of a tuple."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def require_no_foreign_hooks(model: nn.Module) -> None:
    """Refuse hooks and wrappers that another tool left on the model, which might steer it too.

    Raises:
        ModelError: A hook or a block comes from a package other than the model's own, torch,
            transformers, accelerate, PEFT and this one.
    """
    blocks = decoder_blocks(model)
    known = {*_KNOWN, _module(type(owner_of(model, blocks))).partition(".")[0]}
    wrappers = [(f"block {number}", type(block)) for number, block in enumerate(blocks)]
    hooks = [
        (name or "the model", hook)
        for name, module in model.named_modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    for where, thing in (*wrappers, *hooks):
        if _module(thing).partition(".")[0] not in known:
            raise ModelError(
                f"{where} already has a hook or wrapper from {_module(thing)}, which may steer the "
                "model too; remove it, or load the model again (register hooks that only listen "
                "after steering begins)"
            )


def _hook(direction: Tensor, amounts: float | Tensor, edit: Edit, where: Where) -> Hook:
    """Return the hook of one block; in the common case it costs one addition."""
    is_constant = edit is added and isinstance(amounts, float)
    wide = amounts * _wide(direction) if is_constant else _wide(direction)
    vector = wide

    def steer(_block: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        nonlocal vector
        hidden = hidden_states(output)
        chosen = where.selected(hidden)
        if chosen is False:
            return None
        dtype = hidden.dtype if is_constant else wide.dtype
        if vector.dtype != dtype or vector.device != hidden.device:
            vector = wide.to(hidden.device, dtype)
        moved = hidden + vector if is_constant else edit(hidden, vector, where.strength(hidden))
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


def _require_room(model: nn.Module, layer: int, direction: Tensor, amounts: float | Tensor) -> None:
    dtype = getattr(next(model.parameters(), None), "dtype", torch.float32)
    longest = torch.as_tensor(amounts).abs().max() * direction.detach().double().abs().max().cpu()
    if longest > torch.finfo(dtype).max:
        raise NonFiniteError(
            f"layer {layer}: the vector to add is too large for {dtype}; use a smaller strength"
        )


def _module(thing: Any) -> str:
    return str(getattr(thing, "__module__", "") or type(thing).__module__)
