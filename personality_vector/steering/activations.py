"""Pooled activations: where in the residual stream a model is while it reads given texts."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from personality_vector.errors import DataError, NonFiniteError, blame
from personality_vector.progress import progress
from personality_vector.steering.apply import hidden_states, resolve_layers
from personality_vector.subject import Chat, batched, render
from personality_vector.subject.encoding import encode_chats, encode_text, right_padded
from personality_vector.subject.models import decoder_blocks, decoder_of, device_of
from personality_vector.subject.prompts import Prompts, reading

Pooling = Literal["response_mean", "prompt_last", "prompt_mean", "last"]
"""Which activations of a chat are averaged.

``response_mean``: the tokens of the response, without the marks of the template.
``prompt_mean``, ``prompt_last``: all tokens of the prompt, or only its last. The prompt is what
``generate`` reads, including the marks that open the reply, so its last token comes just before
the first generated one. The prompt is read alone: a response after it has no influence.
``last``: the last token of the response, or of the prompt if the chat has no response.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One input of a model.

    Attributes:
        ids: Its tokens.
        prompt_end: Column of the first token after the prompt.
        pooled: Columns whose activations are averaged.
    """

    ids: Sequence[int]
    prompt_end: int
    pooled: Sequence[int]


class Reader:
    """Reads pooled activations of a model: chats in, a vector for each layer out.

    One forward pass serves all layers, and no activation outlives its block. The blocks' outputs
    are read by forward hooks, after any steering hook that is already there;
    ``output_hidden_states`` would miss steering, and would return the last block after the final
    norm. The output layer is not run, and padding is never read.

    Args:
        model: A causal language model; not changed.
        tokenizer: The tokenizer of the model; it needs a chat template.
        layers: Decoder blocks, ``-1`` the last; by default all. As an attribute they are 0-based.
        pooling: Which tokens' activations are averaged.
        batch_size: Inputs per forward pass; it changes speed and memory only.

    Raises:
        ModelError: The model has no such layer.
        DataError: No layer is named, or one is named twice.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        layers: Sequence[int] | None = None,
        pooling: Pooling = "response_mean",
        batch_size: int = 16,
    ) -> None:
        self.layers = resolve_layers(
            model, range(len(decoder_blocks(model))) if layers is None else layers
        )
        self._model = model
        self._tokenizer = tokenizer
        self._pooling = pooling
        self._batch_size = batch_size

    def pooled(self, inputs: Sequence[Chat]) -> dict[int, Float[Tensor, "inputs hidden"]]:
        """Return, for each layer, the pooled activation of each input, in their order.

        float32, on the CPU, in the unit of the activation.

        Raises:
            DataError: There is no input, or one cannot be read.
            NonFiniteError: An activation is NaN or infinite; the layer is named.
        """
        kept = [
            {layer: rows.float() for layer, rows in batch.items()}
            for batch in self._batches(inputs)
        ]
        return {layer: torch.cat([batch[layer] for batch in kept]) for layer in self.layers}

    def mean(self, inputs: Sequence[Chat]) -> dict[int, Float[Tensor, " hidden"]]:
        """Return, for each layer, the mean over inputs of their pooled activations.

        float64, on the CPU. Only a sum is kept. Raises like :meth:`pooled`.
        """
        sums = dict.fromkeys(self.layers, torch.zeros(1, dtype=torch.float64))
        for batch in self._batches(inputs):
            sums = {layer: sums[layer] + rows.sum(0) for layer, rows in batch.items()}
        return {layer: total / len(inputs) for layer, total in sums.items()}

    def _batches(self, inputs: Sequence[Chat]) -> Iterator[dict[int, Float[Tensor, "rows hidden"]]]:
        if not inputs:
            raise DataError("no input was given to read activations from; give at least one")
        rows = []
        for number, given in enumerate(inputs):
            with blame(input=number):
                rows.append(row_of(self._tokenizer, given, self._pooling))
        for batch in progress(
            list(batched(range(len(rows)), self._batch_size)), "read activations"
        ):
            found = read_blocks(self._model, [rows[n] for n in batch], self.layers, _mean)
            pooled = {layer: torch.stack(means).cpu() for layer, means in found.items()}
            for layer, values in pooled.items():
                bad = [n for n, row in zip(batch, values, strict=True) if not row.isfinite().all()]
                if bad:
                    raise NonFiniteError(
                        f"layer {layer}: the model's activations for input {bad[0]} are NaN or "
                        "infinite; check its weights, or load it in float32"
                    )
            yield pooled


@torch.no_grad()
def read_blocks(
    model: Any, rows: Sequence[Row], layers: Sequence[int], pool: Callable[[Tensor], Tensor]
) -> dict[int, list[Tensor]]:
    """Return, for each layer, what ``pool`` makes of the outputs at each row's columns.

    One forward pass, without the output layer. Row by row: padding is never read, and what
    ``pool`` widens is never held for a whole batch.
    """
    device = device_of(model)
    ids, mask = right_padded([row.ids for row in rows])
    chosen = [torch.tensor(row.pooled, device=device) for row in rows]
    found: dict[int, list[Tensor]] = {}

    def record(layer: int, _block: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        pairs = zip(hidden_states(output), chosen, strict=True)
        found[layer] = [pool(row[columns.to(row.device)]) for row, columns in pairs]

    blocks = decoder_blocks(model)
    with ExitStack() as stack:
        for layer in layers:
            stack.callback(blocks[layer].register_forward_hook(partial(record, layer)).remove)
        stack.enter_context(reading(Prompts.of(ids, mask, [row.prompt_end for row in rows])))
        decoder_of(model)(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False)
    return found


def template_hash(tokenizer: Any) -> str:
    """Return a hex digest of the tokenizer's chat template, or "" if it has no template."""
    template = tokenizer.chat_template
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return "" if template is None else hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def options_of(tokenizer: Any) -> dict[str, Any]:
    """Return ``{"template_options": ...}`` if variables of the chat template are set, for records.

    They are those that :func:`~personality_vector.subject.models.load_tokenizer` set.
    """
    chosen = getattr(tokenizer, "chosen", {})
    return {key: chosen[key] for key in ("template_options",) if key in chosen}


def require_prompts_differ(
    positive: Sequence[Chat], negative: Sequence[Chat], pooling: Pooling
) -> None:
    """Check that two sides have different prompts, where only prompts are pooled.

    Raises:
        DataError: It averages prompts, and each prompt is as frequent on one side as on the other.
    """
    if not pooling.startswith("prompt"):
        return
    ours, theirs = (Counter(json.dumps(_prompt(c)) for c in side) for side in (positive, negative))
    # Shares, not counts: sides of unequal length may have the same mean.
    if ours and all(ours[p] * len(negative) == theirs[p] * len(positive) for p in ours | theirs):
        raise DataError(
            f"both sides have the same prompts, so pooling {pooling} finds no difference; "
            "use response_mean, or give the two sides different prompts"
        )


def row_of(tokenizer: Any, chat: Chat, pooling: Pooling) -> Row:
    """Return a chat as one input.

    Raises:
        DataError: It lacks the text that is pooled, cannot be rendered, or is longer than the model
            reads.
    """
    asked = _prompt(chat)
    if pooling == "response_mean" or (pooling == "last" and len(asked) < len(chat)):
        encoded = encode_chats(tokenizer, [chat])
        ids = encoded.input_ids[0].tolist()
        columns = encoded.response_mask[0].nonzero().flatten().tolist()
        prompt_end = columns[0]
    else:
        if not asked:
            raise DataError(f"pooling {pooling} needs a prompt, and this chat has none")
        prompt = render(tokenizer, asked, reply_follows=True)
        ids = encode_text(tokenizer, prompt, asked)["input_ids"]
        columns, prompt_end = list(range(len(ids))), len(ids)
    return Row(ids, prompt_end, columns[-1:] if pooling.endswith("last") else columns)


def _prompt(chat: Chat) -> Chat:
    return chat[:-1] if chat and chat[-1]["role"] == "assistant" else chat


def _mean(states: Float[Tensor, "columns hidden"]) -> Float[Tensor, " hidden"]:
    """Return the mean state; float64."""
    return (states.cpu() if states.is_mps else states).double().mean(0)  # MPS has no float64
