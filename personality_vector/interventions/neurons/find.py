"""Finding neurons: those that are active more often when one pole speaks than the other."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from personality_vector.errors import DataError, NonFiniteError
from personality_vector.interventions.neurons.chosen import (
    Neurons,
    NeuronSet,
    Site,
    activations,
    neuron_sites,
)
from personality_vector.progress import progress
from personality_vector.steering.activations import options_of
from personality_vector.subject import Chat, batched
from personality_vector.subject.encoding import encode_chats
from personality_vector.subject.models import decoder_of, device_of
from personality_vector.traits import Pole

# Bits of the mantissa of a float32 after its 5 most significant ones (the first is implicit).
_DROPPED = 23 - 4

_FIRST, _LAST = ((127 + exponent) << 4 for exponent in (-12, 8))
BINS = _LAST - _FIRST + 2
"""Bin 0 counts what is below 2**-12, the last bin what is above 2**8."""


def bin_of(activation: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Return the bin of each activation: positive ones by their first 5 significant bits."""
    bits = activation.float().contiguous().view(torch.int32) + (1 << (_DROPPED - 1))
    return ((bits >> _DROPPED) - _FIRST + 1).clamp(
        0, BINS - 1
    )  # the bits of a negative number are negative


def value_of(bins: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return the activation that a bin stands for; 0 for bin 0; float32."""
    values = ((bins.int() + (_FIRST - 1)) << _DROPPED).view(torch.float32)
    return torch.where(bins == 0, 0.0, values)


class Tally:
    """Counts over the tokens of responses, for the neurons of one block.

    Memory: 1.3 kB for each neuron.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.tokens = 0
        self.active = torch.zeros(width, dtype=torch.int64, device=device)
        self._histogram = torch.zeros(width * BINS, dtype=torch.int32, device=device)
        self._starts = BINS * torch.arange(width, device=device)
        self.sum = torch.zeros((), device=device)

    def add(self, act: Float[Tensor, "tokens width"]) -> None:
        """Count the activations of some tokens."""
        self.tokens += len(act)
        self.active += (act > 0).sum(0)
        places = (bin_of(act) + self._starts).flatten()
        self._histogram.scatter_add_(0, places, torch.ones_like(places, dtype=torch.int32))
        self.sum += act.float().sum()

    def a95(self) -> Float[Tensor, " width"]:
        """Return the smallest value that at least 95 % of the tokens do not exceed.

        float32, on the CPU, to 5 significant bits, from 0 to 256.
        """
        below = self._histogram.view(-1, BINS).cumsum(1) < -(-95 * self.tokens // 100)
        return value_of(below.sum(1)).cpu()


@torch.no_grad()
def tally_responses(
    model: Any, tokenizer: Any, sites: Sequence[Site], chats: Sequence[Chat], batch_size: int
) -> list[Tally]:
    """Return the counts of every block over the response tokens of ``chats``, in one pass.

    Raises:
        DataError: A chat does not end with a response, or cannot be rendered.
        ModelError: The model's activations are not one vector for each token.
        NonFiniteError: An activation is NaN or infinite.
    """
    tallies = [Tally(site.width, site.device) for site in sites]
    for batch in progress(list(batched(chats, batch_size)), "count neurons"):
        encoded = encode_chats(tokenizer, batch).to(device_of(model))
        with ExitStack() as hooks:
            for site, tally in zip(sites, tallies, strict=True):
                count = partial(_record, tally, site.width, encoded.response_mask)
                hooks.callback(site.activation.register_forward_hook(count).remove)
            decoder_of(model)(
                input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, use_cache=False
            )
    for layer, tally in enumerate(tallies):
        if not torch.isfinite(tally.sum):
            raise NonFiniteError(f"layer {layer}: a neuron's activation is NaN or infinite")
    return tallies


def _record(
    tally: Tally, width: int, mask: Tensor, _module: nn.Module, _args: tuple[Any, ...], output: Any
) -> None:
    # Row by row: padding is never read, and the bins of a whole batch are never held.
    for row, is_response in zip(activations(output, width), mask, strict=True):
        tally.add(row[is_response.to(row.device)])


def find_neurons(  # noqa: PLR0913  (two sides, how to read them, and what they mean)
    model: nn.Module,
    tokenizer: Any,
    positive: Sequence[Chat],
    negative: Sequence[Chat],
    *,
    at_least: int | None = None,
    threshold: float = 0.1,
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
        tokenizer: The tokenizer of the model; it needs a chat template.
        positive: Chats that end with an assistant message which shows the pole.
        negative: Chats that end with one which shows the opposite.
        at_least: Fewest neurons to keep on each side, if that many differ; by default 2000, but at
            most one in 20 of the model's neurons.
        threshold: Difference in probability from which every neuron is kept.
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
            raise DataError(f"no {side} chats: each side needs at least 1")
    sites = neuron_sites(model)
    plus, minus = (
        tally_responses(model, tokenizer, sites, chats, batch_size)
        for chats in (positive, negative)
    )
    differences = [_difference(one, other) for one, other in zip(plus, minus, strict=True)]
    if at_least is None:
        # 2000 as in the paper, whose lists for Llama-3-8B hold 2 to 6 % of its neurons.
        at_least = min(2000, max(1, sum(site.width for site in sites) // 20))
    return NeuronSet(
        _kept(differences, plus, threshold, at_least),
        _kept([-difference for difference in differences], minus, threshold, at_least),
        "",
        pole,
        label or str(pole or ""),
        (len(positive), len(negative)),
        options_of(tokenizer),
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
    kept = {layer: mask.nonzero()[:, 0] for layer, mask in enumerate(masks) if mask.any()}
    return {
        layer: Neurons(index, differences[layer][index].float(), tallies[layer].a95()[index])
        for layer, index in kept.items()
    }
