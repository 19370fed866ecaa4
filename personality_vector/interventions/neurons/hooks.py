"""The neurons of a model: where they are, and hooks that raise one side and silence the other."""

from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from personality_vector.errors import BaseMismatchError, ModelError
from personality_vector.interventions.neurons.chosen import NeuronSet
from personality_vector.numeric.random import generator_for
from personality_vector.steering import Hook, Positions, Where, require_no_foreign_hooks
from personality_vector.subject.models import decoder_blocks, device_of, hidden_size

# The names that transformers gives the activation module.
_NAMES = ("act_fn", "act", "activation_fn", "activation")


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """The neurons of one block.

    Attributes:
        activation: The module whose output is their activations ``(rows, seq, width)``: of the
            gate where the MLP has one, ``act(gate(x))``, else of its first layer.
        width: Number of neurons.
        device: Device of the block.
    """

    activation: nn.Module
    width: int
    device: torch.device


def neuron_sites(model: nn.Module) -> list[Site]:
    """Return the neurons of every decoder block.

    Raises:
        ModelError: A block does not have exactly one MLP with an activation module and a projection
            back to the residual stream (a mixture of experts has several), or blocks share one.
    """
    hidden = hidden_size(model)
    sites = [_site(block, layer, hidden) for layer, block in enumerate(decoder_blocks(model))]
    if len({id(site.activation) for site in sites}) < len(sites):
        raise ModelError(
            "blocks share one activation module, so their neurons cannot be told apart"
        )
    return sites


def activations(output: Any, width: int) -> Float[Tensor, "rows seq width"]:
    """Return the output of an activation module, checked to be one vector for each token.

    Raises:
        ModelError: It has another shape.
    """
    if not isinstance(output, Tensor) or output.ndim != 3 or output.shape[-1] != width:
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(f"an activation module returns {shape}, not [rows, tokens, {width}]")
    return output


def _site(block: nn.Module, layer: int, hidden: int) -> Site:
    found = [
        (child, widths)
        for parent in block.modules()
        for name, child in parent.named_children()
        if name in _NAMES and (widths := _inner_widths(parent, hidden))
    ]
    if len(found) != 1 or len(found[0][1]) != 1:
        raise ModelError(
            f"block {layer} is a {type(block).__name__}, in which {len(found)} MLPs with a module "
            f"named {', '.join(_NAMES[:-1])} or {_NAMES[-1]} were found; neurons need exactly one, "
            "so a mixture of experts has none"
        )
    activation, (width,) = found[0]
    return Site(activation, width, device_of(block))


def _inner_widths(parent: nn.Module, hidden: int) -> Sequence[int]:
    """Return the input widths of the layers directly in ``parent`` that lead to the residual."""
    sizes = {
        (getattr(child, "in_features", None), getattr(child, "out_features", None))
        if hasattr(child, "in_features")
        else (getattr(child, "nx", None), getattr(child, "nf", None))  # Conv1D of GPT-2
        for child in parent.children()
    }
    return [inner for inner, outer in sizes if outer == hidden and isinstance(inner, int)]


@contextmanager
def steered_neurons(
    model: nn.Module,
    neurons: NeuronSet,
    gamma: float,
    positions: Positions,
    *,
    keep: float = 1.0,
    seed: int = 0,
) -> Generator[None]:
    """Steer by forward hooks on the activation modules; gamma 0 registers none.

    Below 1, ``keep`` is the probability that a neuron is raised, drawn again in every forward
    pass.

    Cost: that of the chosen neurons, and one copy of the activations of steered passes.

    Raises:
        ModelError: The model's neurons cannot be found, or another tool left a hook on it.
        BaseMismatchError: It does not have these neurons.
    """
    sites = neuron_sites(model)
    require_no_foreign_hooks(model)
    _require_fit(neurons, sites)
    raised, silenced = neurons.positive, neurons.negative
    if gamma < 0:
        raised, silenced = silenced, raised
    with ExitStack() as hooks:
        if gamma != 0:
            where = Where(positions, 1.0)
            where.watch(model, decoder_blocks(model), hooks, 0)
            for layer in sorted({*raised, *silenced}):
                up, down = raised.get(layer), silenced.get(layer)
                index = torch.cat([side.index for side in (up, down) if side is not None])
                boost = (
                    abs(gamma) * up.a95 * torch.sigmoid(10.0 * (up.difference - 0.15))
                    if up is not None
                    else torch.zeros(0)
                )
                site, draws = sites[layer], generator_for(seed, f"neurons of layer {layer}")
                edit = _hook(site.width, where, index, boost, keep, draws)
                hooks.callback(site.activation.register_forward_hook(edit).remove)
        yield


def _require_fit(neurons: NeuronSet, sites: Sequence[Site]) -> None:
    for layer, found in (*neurons.positive.items(), *neurons.negative.items()):
        largest = int(found.index[-1])
        if not 0 <= layer < len(sites) or largest >= sites[layer].width:
            raise BaseMismatchError(
                f"{neurons.label}: neuron {largest} of layer {layer} does not exist in this "
                f"model of {len(sites)} blocks; use neurons that were found in it"
            )


def _hook(
    width: int,
    where: Where,
    index: Tensor,
    boost: Tensor,
    keep: float,
    generator: torch.Generator,
) -> Hook:
    """Return the hook on the activation module of one block.

    Args:
        width: Number of all neurons of the block.
        where: Which tokens are edited.
        index: Which neurons, those that are raised first.
        boost: What is added to each of the raised.
        keep: Probability that one is raised in a pass.
        generator: Draws which.
    """

    def edit(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Tensor | None:
        nonlocal index, boost
        act = activations(output, width)
        chosen = where.selected(act)
        if chosen is False:
            return None
        if boost.dtype != act.dtype or boost.device != act.device:
            boost, index = boost.to(act.device, act.dtype), index.to(act.device)
        raised, added = len(boost), boost
        if keep < 1.0:
            drawn = torch.rand(raised, generator=generator) < keep
            added = boost * drawn.to(boost.device)
        part = act.index_select(-1, index)
        moved = torch.cat([part[..., :raised] + added, part[..., raised:].clamp(max=0.0)], dim=-1)
        if chosen is not True:
            moved = torch.where(chosen, moved, part)
        return act.index_copy(-1, index, moved)

    return edit
