"""Mean activations: where in the residual stream a model is while it reads given responses."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from personality_vector.chat import Chat, batched, encode_chats
from personality_vector.models import decoder_blocks, device_of
from personality_vector.progress import progress
from personality_vector.steering.apply import Hook, hidden_states


@torch.no_grad()
def mean_response_activations(
    model: Any, tokenizer: Any, chats: Sequence[Chat], layers: Sequence[int], batch_size: int
) -> dict[int, Float[Tensor, " hidden"]]:
    """Return, for each layer, the mean over chats of the mean over response tokens.

    One forward pass over the chats serves all layers, and no activation outlives its block. The
    blocks' outputs are read by forward hooks, after any steering hook that is already there;
    ``output_hidden_states`` would miss steering, and would return the last block after the final
    norm. The output layer is not run.

    Args:
        model: A causal language model; not changed.
        tokenizer: With a chat template.
        chats: Each ends with an assistant message, whose content is the response. At least one.
        layers: 0-based decoder blocks.
        batch_size: Chats per forward pass; it changes speed and memory only.

    Returns:
        float64, on the CPU, in the unit of the activation.

    Raises:
        DataError: A chat does not end with a response, or cannot be rendered.
    """
    sums = _ResponseSums()
    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    with ExitStack() as hooks:
        for layer in layers:
            handle = decoder_blocks(model)[layer].register_forward_hook(sums.recorder(layer))
            hooks.callback(handle.remove)
        for batch in progress(list(batched(chats, batch_size)), "extract"):
            encoded = encode_chats(tokenizer, batch).to(device_of(model))
            sums.mask = encoded.response_mask
            decoder(
                input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, use_cache=False
            )
    return {layer: (sums.totals[layer] / len(chats)).cpu() for layer in layers}


class _ResponseSums:
    """Running sums, per layer, of the mean activation over the response of each chat."""

    def __init__(self) -> None:
        self.mask: Bool[Tensor, "batch seq"] = torch.empty(0, 0, dtype=torch.bool)
        self.totals: dict[int, Float[Tensor, " hidden"]] = {}

    def recorder(self, layer: int) -> Hook:
        """Return a hook that adds what it sees to the sum of ``layer``."""

        def record(_block: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
            hidden = hidden_states(output)
            mask = self.mask.to(hidden.device)
            # Row by row: padding is never read, and float64 is never held for a whole batch.
            for row, is_response in zip(hidden, mask, strict=True):
                mean = row[is_response].double().mean(0)
                self.totals[layer] = self.totals.get(layer, torch.zeros_like(mean)) + mean

        return record
