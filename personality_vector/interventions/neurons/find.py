"""Finding neurons: those that are active more often when one pole speaks than the other."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from personality_vector.errors import DataError
from personality_vector.interventions.neurons.chosen import Neurons, NeuronSet
from personality_vector.interventions.neurons.sites import neuron_sites
from personality_vector.interventions.neurons.tally import Tally, tally_responses
from personality_vector.subject.chat import Chat
from personality_vector.traits import Pole

_THRESHOLD = 0.1
"""Of the difference, arXiv:2410.12327: every neuron from here on is kept."""

_AT_LEAST = 2000
"""Neurons that are kept on each side, arXiv:2410.12327."""

_SHARE = 20
"""One neuron in so many at most, by that rule; their lists for Llama-3-8B are of 2 to 6 %."""

_PERCENT = 95
"""Of the tokens do not exceed ``a95``, arXiv:2410.12327."""


def find_neurons(  # noqa: PLR0913  (two sides, how to read them, and what they mean)
    model: nn.Module,
    tokenizer: Any,
    positive: Sequence[Chat],
    negative: Sequence[Chat],
    *,
    at_least: int | None = None,
    threshold: float = _THRESHOLD,
    batch_size: int = 16,
    pole: Pole | None = None,
    label: str = "",
) -> NeuronSet:
    """Return the neurons that are active more often over one side's responses than the other's.

    A neuron is an entry of the activation in an MLP, ``act(gate(x))``, and active where that is
    above 0.

    Args:
        model: A causal language model; not changed. Its fingerprint is unknown to this function:
            set it with ``dataclasses.replace(neurons, model=digest)``.
        tokenizer: With a chat template.
        positive: Chats that end with an assistant message which shows the pole.
        negative: Chats that end with one which shows the opposite.
        at_least: Neurons that each side has, if as many differ at all; by default 2000, but no
            more than one in 20 of the model's neurons.
        threshold: Of the difference in probability; all neurons from there on are kept.
        batch_size: Chats per forward pass; it changes speed and memory only.
        pole: What the positive responses show.
        label: Defaults to the pole.

    Raises:
        DataError: A side is empty, a chat has no response, or no neuron tells the sides apart.
        ModelError: The model's neurons cannot be found, as in a mixture of experts.
        NonFiniteError: An activation is NaN or infinite.

    Source:
        NPTI, Deng et al. 2024, arXiv:2410.12327: ``delta = Pr+(act > 0) - Pr-(act > 0)`` over
        response tokens; a side keeps all neurons with ``delta >= 0.1``, and at least 2000.
        Deviations: responses are as given, where they let the model write them; ``a95`` is exact
        to 5 significant bits up to 256, where they have bins of 0.01 up to 3; a small model keeps
        fewer than 2000, which would be most of its neurons.
    """
    for side, chats in (("positive", positive), ("negative", negative)):
        if not chats:
            raise DataError(f"no {side} chats: both sides of the neurons need at least 1")
    sites = neuron_sites(model)
    plus, minus = (
        tally_responses(model, tokenizer, sites, chats, batch_size)
        for chats in (positive, negative)
    )
    differences = [_difference(one, other) for one, other in zip(plus, minus, strict=True)]
    least = at_least
    if least is None:
        least = min(_AT_LEAST, max(1, sum(site.width for site in sites) // _SHARE))
    label = label or str(pole or "")
    return NeuronSet(
        _kept(differences, plus, threshold, least),
        _kept([-difference for difference in differences], minus, threshold, least),
        "",
        pole,
        label,
        (len(positive), len(negative)),
    )


def _difference(plus: Tally, minus: Tally) -> Float[Tensor, " width"]:
    """Return ``Pr+ - Pr-`` in float64, rounded once: 0.3 - 0.2 would not be 0.1."""
    excess = plus.active * minus.tokens - minus.active * plus.tokens
    return (excess.double() / (plus.tokens * minus.tokens)).cpu()


def _kept(
    differences: Sequence[Float[Tensor, " width"]],
    tallies: Sequence[Tally],
    threshold: float,
    least: int,
) -> dict[int, Neurons]:
    """Return the neurons of one side, by layer; of equals, those of earlier layers first."""
    every = torch.cat(list(differences))
    chosen = every >= threshold
    chosen[every.argsort(descending=True, stable=True)[:least]] = True
    chosen &= every > 0
    masks = torch.split(chosen, [len(difference) for difference in differences])
    return {
        layer: _neurons(mask, differences[layer], tallies[layer])
        for layer, mask in enumerate(masks)
        if mask.any()
    }


def _neurons(
    mask: Bool[Tensor, " width"], difference: Float[Tensor, " width"], tally: Tally
) -> Neurons:
    index = mask.nonzero()[:, 0]
    return Neurons(index, difference[index].float(), tally.quantile(_PERCENT)[index])
