"""Creativity by Olson et al.: the direction of it, and how far a text leans to a direction."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float64
from pydantic import ValidationError
from torch import Tensor, nn

from personality_vector.errors import DataError, NonFiniteError
from personality_vector.recipes.schema import Recipe, Words
from personality_vector.steering.activations import Pooling
from personality_vector.steering.apply import hidden_states
from personality_vector.steering.monitor import unit_at
from personality_vector.steering.vector import SteeringVector
from personality_vector.subject.chat import Chat, batched, encode_chats, question, right_padded
from personality_vector.subject.models import decoder_blocks, decoder_of, device_of
from personality_vector.subject.prompts import Prompts, reading


class CreativityPair(Recipe):
    """A prompt that asks for something creative, and its uncreative counterpart."""

    creative: Words
    uncreative: Words


def read_creativity_pairs(file: Path) -> list[CreativityPair]:
    """Return the pairs of a JSONL file: rows ``{creative, uncreative}``, in file order.

    Raises:
        DataError: The file cannot be read, holds no pair, or a line is none (named by number).
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    pairs = [_pair(line, f"{file} line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise DataError(f"{file}: holds no pair of a creative and an uncreative prompt")
    return pairs


def creativity_direction(
    model: nn.Module,
    tokenizer: Any,
    pairs: Sequence[CreativityPair],
    *,
    layers: Sequence[int] | None = None,
    pooling: Pooling = "prompt_last",
    batch_size: int = 16,
) -> SteeringVector:
    """Return the direction of creativity: of unit length, so a coefficient is in activation units.

    Each prompt is read as the message of a user; no reply is generated.

    Raises:
        DataError: There are no pairs, the two sides are equal, or the pooling needs a response.
        NonFiniteError: The model's activations are NaN or infinite.
        ModelError: The model has no such layer.

    Source:
        Olson et al. 2024, arXiv:2412.06060: ``a = unit(mean h_l(creative) - mean h_l(uncreative))``
        with ``h_l`` the output of layer 8 of Llama-3-8B, over 500 story prompts and versions of
        them that were made uncreative; ``h_8 + 3 a``. Not verified: over which tokens they pool
        and how they count layers, for which there is no public code. The last token of the prompt
        is our choice, because what is generated next depends on it; ``prompt_mean`` is the other.
    """
    sides = (
        [question(pair.creative) for pair in pairs],
        [question(pair.uncreative) for pair in pairs],
    )
    vector = SteeringVector.extract(
        model, tokenizer, *sides, layers=layers, pooling=pooling, batch_size=batch_size
    )
    return replace(vector.unit(), label="creativity")


@torch.no_grad()
def creativity_scores(
    model: Any,
    tokenizer: Any,
    chats: Sequence[Chat],
    direction: Float[Tensor, " hidden"],
    layer: int,
    batch_size: int = 16,
) -> list[Float64[Tensor, " states"]]:
    """Return the cosines of which each response's score is the mean, read in teacher-forced passes.

    The score is ``(1 / (T + 1)) sum_{t=0..T} cos(LLM_l(x_t), a)``. ``t = 0`` is the output of
    block ``l`` at the last token of the input, so before anything is written; ``t = 1..T`` that at
    the ``t``-th token of the text, so after it is read. Marks that end a turn are not part of the
    text.

    Args:
        model: A causal language model; steering that is already entered is seen.
        tokenizer: With a chat template.
        chats: Each ends with a message of the assistant, whose content is the text.
        direction: The attribute ``a``, ``(hidden,)``, of any length but 0.
        layer: 0-based decoder block, ``-1`` the last.
        batch_size: Chats per forward pass.

    Raises:
        ModelError: The model has no such layer.
        BaseMismatchError: The direction has another width than the model.
        DataError: The direction is zero, or a chat does not end with a text, or begins with it.
        NonFiniteError: The direction or an activation is NaN or infinite.

    Source:
        Olson et al. 2024, arXiv:2412.06060: the mean over ``t = 0..T`` of
        ``cos(normalised LLM_l(x_t), a)``, ``x_0`` the input, ``l = 8`` of Llama-3-8B. There is no
        public code. A cosine does not change when a state is divided by its norm, so we take
        "normalised" to add nothing; if it means a norm layer, theirs is another number. Their
        layers are shown as 0, 8, .. 32, so ``l = 8`` may count the embeddings: it is then block 7
        here. Whether the state after the last token counts is not said; it does here.
    """
    place, unit = unit_at(model, direction, layer)
    scores = []
    for batch in batched(chats, batch_size):
        encoded = encode_chats(tokenizer, batch)
        ends = encoded.prompts.ends
        if min(ends) < 1:
            raise DataError("a row has no input before its text, so there is no state x_0")
        stops = [int(mask.nonzero().max()) + 1 for mask in encoded.response_mask]
        rows = [ids[:stop] for ids, stop in zip(encoded.input_ids, stops, strict=True)]
        hidden = _outputs(model, rows, ends, place)
        for states, end, stop in zip(hidden, ends, stops, strict=True):
            scores.append(_cosines(states[end - 1 : stop], unit))
    return scores


def _outputs(
    model: Any, rows: Sequence[Tensor], prompt_ends: Sequence[int], layer: int
) -> Float[Tensor, "rows seq hidden"]:
    """Return what a block puts out for rows of tokens, after any steering of it; on the CPU."""
    seen: list[Tensor] = []

    def record(_block: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        seen.append(hidden_states(output).cpu())

    ids, mask = right_padded(rows)
    device = device_of(model)
    handle = decoder_blocks(model)[layer].register_forward_hook(record)
    try:
        with reading(Prompts.of(ids, mask, prompt_ends)):
            decoder_of(model)(
                input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False
            )
    finally:
        handle.remove()
    return seen[0]


def _cosines(
    states: Float[Tensor, "states hidden"], unit: Float64[Tensor, " hidden"]
) -> Float64[Tensor, " states"]:
    exact = states.double()
    cosines: Tensor = exact @ unit / exact.norm(dim=-1)
    if not torch.isfinite(cosines).all():
        token = int((~torch.isfinite(cosines)).int().argmax())
        raise NonFiniteError(
            f"the activation at t = {token} is zero, NaN or infinite, so it has no cosine"
        )
    return cosines


def _pair(line: str, place: str) -> CreativityPair:
    try:
        return CreativityPair.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(key) for key in first["loc"]) or "the line"
        raise DataError(
            f"{place}: {where}: {first['msg']}; a row is one object {{creative, uncreative}}"
        ) from error
