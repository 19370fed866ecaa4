"""Neuron steering: the neurons of a pole raised, those of its opposite silenced."""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from personality_vector.errors import RecipeError
from personality_vector.interventions.neurons.chosen import Neurons, NeuronSet
from personality_vector.interventions.neurons.sites import activations, neuron_sites
from personality_vector.numeric.random import generator_for
from personality_vector.steering import Positions
from personality_vector.steering.apply import Hook, require_no_strangers
from personality_vector.steering.where import Where
from personality_vector.subject.chat import ChatEdit
from personality_vector.subject.models import decoder_blocks
from personality_vector.subject.protocols import require_finite

RESPONSE = Positions.parse("response")
"""Every token behind the prompt: what decoding reads."""


@dataclass(frozen=True, slots=True, eq=False)
class NeuronSteering:
    """``act + gamma * a95 * f(difference)`` on the neurons of a pole; the opposite's are silent.

    ``f(d) = 1 / (1 + exp(-10 (d - 0.15)))``, and silent is ``min(act, 0)``. Strength is gamma;
    below 0 the two poles change places. At 0 nothing is silenced either, so the effect jumps
    there: a small gamma silences as much as a large one.

    Attributes:
        neurons: From :func:`find_neurons`.
        label: Defaults to that of the neurons.
        positions: Which tokens are steered.
        keep: Probability that a neuron is raised, drawn anew in every forward pass; below 1 the
            logits depend on how a text is cut into passes.
        seed: Of these draws.

    Raises:
        RecipeError: ``keep`` is not in (0, 1].

    Source:
        NPTI, Deng et al. 2024, arXiv:2410.12327. Deviations: ``keep`` is 1, in their code 0.9,
        since a model that changes from pass to pass has no likelihood; steered tokens are those
        of the response wherever they are read, also in a teacher-forced pass.
    """

    neurons: NeuronSet
    label: str = ""
    positions: Positions = RESPONSE
    keep: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "label", self.label or self.neurons.label)
        if not 0.0 < self.keep <= 1.0:
            raise RecipeError(f"{self.label}: keep must be in (0, 1], got {self.keep}")

    @contextmanager
    def applied(self, model: nn.Module, gamma: float) -> Generator[ChatEdit]:
        """Steer by forward hooks on the activation modules; gamma 0 registers none.

        Cost: that of the chosen neurons, and one copy of the activations of steered passes.

        Raises:
            ModelError: The model's neurons cannot be found, or another tool left a hook on it.
            BaseMismatchError: It has not these neurons.
            NonFiniteError: Gamma is not finite.
            DataError: Where the prompt ends is unknown; see :func:`steered`.
        """
        require_finite(self.label, gamma)
        sites = neuron_sites(model)
        require_no_strangers(model)
        self.neurons.require_fit(sites)
        raised, silenced = self.neurons.positive, self.neurons.negative
        if gamma < 0:
            raised, silenced = silenced, raised
        with ExitStack() as hooks:
            if gamma != 0:
                where = Where(self.positions, 1.0)
                where.watch(model, decoder_blocks(model), hooks, 0)
                for layer in sorted({*raised, *silenced}):
                    site, draw = sites[layer], self._draws(layer)
                    edit = _Edit(raised.get(layer), silenced.get(layer), abs(gamma))
                    hook = _hook(edit, site.width, where, draw)
                    hooks.callback(site.activation.register_forward_hook(hook).remove)
            yield identity

    def _draws(self, layer: int) -> "_Draws | None":
        return _Draws(self.keep, self.seed, layer) if self.keep < 1.0 else None


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


class _Draws:
    """Which neurons of one block are raised in a forward pass."""

    def __init__(self, keep: float, seed: int, layer: int) -> None:
        self._keep = keep
        self._generator = generator_for(seed, f"neurons of layer {layer}")

    def __call__(self, count: int) -> Tensor:
        return torch.rand(count, generator=self._generator) < self._keep


def _hook(edit: _Edit, width: int, where: Where, draw: "_Draws | None") -> Hook:
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
