"""Where the neurons of a model are: the activation function in the MLP of each decoder block."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from personality_vector.errors import ModelError
from personality_vector.subject.models import decoder_blocks, device_of, hidden_size

_NAMES = ("act_fn", "act", "activation_fn", "activation")
"""What transformers calls the module."""


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """The neurons of one block.

    Attributes:
        activation: The module whose output is their activations ``(rows, seq, width)``: of the
            gate where the MLP has one, ``act(gate(x))``, else of its first layer.
        width: Their number.
        device: Of the block.
    """

    activation: nn.Module
    width: int
    device: torch.device


def neuron_sites(model: nn.Module) -> list[Site]:
    """Return the neurons of every decoder block.

    Raises:
        ModelError: A block has not exactly one MLP with an activation module and a projection
            back to the residual stream, as in a mixture of experts; or blocks share a module.
    """
    hidden = hidden_size(model)
    sites = [_site(block, layer, hidden) for layer, block in enumerate(decoder_blocks(model))]
    if len({id(site.activation) for site in sites}) < len(sites):
        raise ModelError(
            "blocks share one activation module, so their neurons cannot be told apart"
        )
    return sites


def activations(output: Any, width: int) -> Float[Tensor, "rows seq width"]:
    """Return the output of a site's module, which must be one vector for each token.

    Raises:
        ModelError: It has another shape.
    """
    if not isinstance(output, Tensor) or output.ndim != 3 or output.shape[-1] != width:
        shape = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(f"an activation module puts out {shape}, not [rows, tokens, {width}]")
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
            "and experts have none of their own"
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
