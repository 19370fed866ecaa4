"""How often and how strongly each neuron is active over a response: counts in one pass."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from personality_vector.errors import NonFiniteError
from personality_vector.interventions.neurons.sites import Site, activations
from personality_vector.progress import progress
from personality_vector.steering.apply import Hook
from personality_vector.subject.chat import Chat, batched, encode_chats
from personality_vector.subject.models import decoder_of, device_of

_DROPPED = 23 - 4
"""Bits of a float32's mantissa beyond 5 significant ones, of which the first is implicit."""

_LOWEST, _HIGHEST = 2.0**-12, 2.0**8
_FIRST, _LAST = ((127 + exponent) << 4 for exponent in (-12, 8))
BINS = _LAST - _FIRST + 2
"""Bin 0 holds whatever is below 2**-12, the last one whatever is above 2**8."""


def bin_of(activation: Float[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """Return the bin of each activation: positive ones by their first 5 significant bits."""
    bits = activation.float().contiguous().view(torch.int32)
    code = (bits + (1 << (_DROPPED - 1))) >> _DROPPED
    return (code - _FIRST + 1).clamp(0, BINS - 1)  # the bits of a negative number are negative


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
        self._sum = torch.zeros((), device=device)

    def add(self, act: Float[Tensor, "tokens width"]) -> None:
        """Count the activations of some tokens."""
        self.tokens += len(act)
        self.active += (act > 0).sum(0)
        places = (bin_of(act) + self._starts).flatten()
        self._histogram.scatter_add_(0, places, torch.ones_like(places, dtype=torch.int32))
        self._sum += act.float().sum()

    def quantile(self, percent: int) -> Float[Tensor, " width"]:
        """Return the smallest value that at least ``percent`` % of the tokens do not exceed.

        float32, on the CPU, to 5 significant bits, from 0 to 256.
        """
        rank = -(-percent * self.tokens // 100)
        below = self._histogram.view(-1, BINS).cumsum(1) < rank
        return value_of(below.sum(1)).cpu()

    def require_finite(self, layer: int) -> None:
        """Check that all that was counted is a number.

        Raises:
            NonFiniteError: An activation is NaN or infinite.
        """
        if not torch.isfinite(self._sum):
            raise NonFiniteError(f"layer {layer}: a neuron's activation is NaN or infinite")


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
    decoder = decoder_of(model)
    for batch in progress(list(batched(chats, batch_size)), "count neurons"):
        encoded = encode_chats(tokenizer, batch).to(device_of(model))
        with ExitStack() as hooks:
            for site, tally in zip(sites, tallies, strict=True):
                hook = _recorder(tally, site.width, encoded.response_mask)
                hooks.callback(site.activation.register_forward_hook(hook).remove)
            decoder(
                input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, use_cache=False
            )
    for layer, tally in enumerate(tallies):
        tally.require_finite(layer)
    return tallies


def _recorder(tally: Tally, width: int, mask: Tensor) -> Hook:
    def record(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        # Row by row: padding is never read, and the bins of a whole batch are never held.
        for row, is_response in zip(activations(output, width), mask, strict=True):
            tally.add(row[is_response.to(row.device)])

    return record
