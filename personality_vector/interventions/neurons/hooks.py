"""Hooks on activation modules: the neurons of one side raised, those of the other silenced."""

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from personality_vector.interventions.neurons.chosen import Neurons, NeuronSet
from personality_vector.interventions.neurons.sites import activations, neuron_sites
from personality_vector.numeric.random import generator_for
from personality_vector.steering import Positions
from personality_vector.steering.apply import Hook, require_no_strangers
from personality_vector.steering.where import Where
from personality_vector.subject.models import decoder_blocks


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

    Below 1, ``keep`` is the probability that a neuron is raised, drawn anew in every forward pass
    by the seed.

    Cost: that of the chosen neurons, and one copy of the activations of steered passes.

    Raises:
        ModelError: The model's neurons cannot be found, or another tool left a hook on it.
        BaseMismatchError: It has not these neurons.
    """
    sites = neuron_sites(model)
    require_no_strangers(model)
    neurons.require_fit(sites)
    raised, silenced = neurons.positive, neurons.negative
    if gamma < 0:
        raised, silenced = silenced, raised
    with ExitStack() as hooks:
        if gamma != 0:
            where = Where(positions, 1.0)
            where.watch(model, decoder_blocks(model), hooks, 0)
            for layer in sorted({*raised, *silenced}):
                edit = _Edit(raised.get(layer), silenced.get(layer), abs(gamma))
                draw = _draw(keep, seed, layer) if keep < 1.0 else None
                hook = _hook(edit, sites[layer].width, where, draw)
                hooks.callback(sites[layer].activation.register_forward_hook(hook).remove)
        yield


def emphasis(difference: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return ``f(d) = 1 / (1 + exp(-10 (d - 0.15)))``."""
    return torch.sigmoid(10.0 * (difference - 0.15))


class _Edit:
    """What is done to the chosen neurons of one block, where its MLP is and in its dtype."""

    def __init__(self, raised: Neurons | None, silenced: Neurons | None, gamma: float) -> None:
        none = torch.zeros(0, dtype=torch.int64)
        up = none if raised is None else raised.index
        down = none if silenced is None else silenced.index
        self.raises = len(up)
        self.index = torch.cat([up, down])
        self.boost = torch.zeros(0)
        if raised is not None:
            self.boost = gamma * raised.a95 * emphasis(raised.difference)

    def follow(self, act: Tensor) -> None:
        """Move to where the activations are, once."""
        if self.boost.dtype != act.dtype or self.boost.device != act.device:
            self.boost = self.boost.to(act.device, act.dtype)
            self.index = self.index.to(act.device)

    def __call__(self, part: Tensor, drawn: Tensor | None) -> Tensor:
        """Return the chosen neurons' activations ``(rows, seq, n)``, edited."""
        boost = self.boost if drawn is None else self.boost * drawn.to(self.boost.device)
        up, down = part[..., : self.raises], part[..., self.raises :]
        return torch.cat([up + boost, down.clamp(max=0.0)], dim=-1)


def _draw(keep: float, seed: int, layer: int) -> Callable[[int], Tensor]:
    """Return what says which neurons of one block are raised in a forward pass."""
    generator = generator_for(seed, f"neurons of layer {layer}")
    return lambda count: torch.rand(count, generator=generator) < keep


def _hook(edit: _Edit, width: int, where: Where, draw: Callable[[int], Tensor] | None) -> Hook:
    def steer(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        act = activations(output, width)
        chosen = where.selected(act)
        if chosen is False:
            return None
        edit.follow(act)
        part = act.index_select(-1, edit.index)
        moved = edit(part, None if draw is None else draw(edit.raises))
        if chosen is not True:
            moved = torch.where(chosen, moved, part)
        return act.index_copy(-1, edit.index, moved)

    return steer
