"""The creativity score: how far a model leans to an attribute while it writes a text."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor

from personality_vector.errors import DataError, NonFiniteError
from personality_vector.steering.monitor import Cosines, cosines_of_tokens, watching
from personality_vector.subject.chat import Chat, batched, encode_chats
from personality_vector.subject.prompts import GenerateCall, announcing


@dataclass(frozen=True, slots=True, eq=False)
class CreativityScore:
    """The score of one text, ``(1 / (T + 1)) sum_{t=0..T} cos(LLM_l(x_t), a)``.

    Attributes:
        per_token: ``(T + 1,)``, the cosines. ``t = 0``: the output of block ``l`` at the last
            token of the input, so before anything is written. ``t = 1..T``: at the ``t``-th token
            of the text, so after it is read. Marks that end a turn are not part of the text.

    Source:
        Olson et al. 2024, arXiv:2412.06060: the mean over ``t = 0..T`` of
        ``cos(normalised LLM_l(x_t), a)``, ``x_0`` the input, ``l = 8`` of Llama-3-8B. There is no
        public code. A cosine does not change when a state is divided by its norm, so we take
        "normalised" to add nothing; if it means a norm layer, theirs is another number. Their
        layers are shown as 0, 8, .. 32, so ``l = 8`` may count the embeddings: it is then block 7
        here. Whether the state after the last token counts is not said; it does here.
    """

    per_token: Float64[Tensor, " states"]

    def __post_init__(self) -> None:
        if not torch.isfinite(self.per_token).all():
            token = int((~torch.isfinite(self.per_token)).int().argmax())
            raise NonFiniteError(
                f"the activation at t = {token} is zero, NaN or infinite, so it has no cosine"
            )

    @property
    def mean(self) -> float:
        """The score, in [-1, 1]."""
        return float(self.per_token.mean())


def creativity_scores(
    model: Any,
    tokenizer: Any,
    chats: Sequence[Chat],
    direction: Float[Tensor, " hidden"],
    layer: int,
    batch_size: int = 16,
) -> list[CreativityScore]:
    """Return the score of the response of each chat, read in teacher-forced passes.

    A text that the model wrote itself may be cut into other tokens when it is read again; then the
    scores of :func:`scoring` are of other tokens.

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
        DataError: The direction is zero, or a chat does not end with a text.
        NonFiniteError: The direction or an activation is NaN or infinite.
    """
    scores: list[CreativityScore] = []
    for batch in batched(chats, batch_size):
        encoded = encode_chats(tokenizer, batch)
        ends = encoded.prompts.ends
        stops = [int(mask.nonzero().max()) + 1 for mask in encoded.response_mask]
        rows = [ids[:stop] for ids, stop in zip(encoded.input_ids, stops, strict=True)]
        scores += creativity_of_tokens(model, rows, ends, direction, layer)
    return scores


def creativity_of_tokens(
    model: Any,
    rows: Sequence[Int[Tensor, " _"]],
    prompt_ends: Sequence[int],
    direction: Float[Tensor, " hidden"],
    layer: int,
) -> list[CreativityScore]:
    """Return the score of each row of token ids, read in one teacher-forced pass.

    Args:
        model: A causal language model.
        rows: Input and text, without padding.
        prompt_ends: Of each row, the first token of the text: at least 1.
        direction: The attribute.
        layer: 0-based decoder block.

    Raises:
        As :func:`creativity_scores`.
    """
    if min(prompt_ends) < 1:
        raise DataError("a row has no input before its text, so there is no state x_0")
    cosines = cosines_of_tokens(model, rows, prompt_ends, direction, layer)
    return [CreativityScore(row[end - 1 :]) for row, end in zip(cosines, prompt_ends, strict=True)]


@contextmanager
def scoring(
    model: Any, direction: Float[Tensor, " hidden"], layer: int
) -> Generator[list[CreativityScore]]:
    """Score what ``model.generate`` writes inside the ``with`` block, while it is written.

    Yields a list that grows by one score for each reply, in the order of the rows, with every call
    of ``generate``. A reply ends before its first end mark, so padding behind it is not counted.
    ``generate`` draws its last token without reading it: where that token is part of a reply, one
    teacher-forced pass adds its state. The scores are those of :func:`creativity_of_tokens` for
    the same tokens; a steered model is seen as it is, whichever context was entered first.

    Raises:
        DataError: On ``generate``, for beams, which mix the rows; for stopping criteria and
            strings, whose replies cannot be told from padding; or for ``inputs_embeds``. The
            direction and the layer are refused as by :func:`creativity_scores`.
    """
    scores: list[CreativityScore] = []
    with watching(model, direction, layer) as cosines, announcing(model):
        generate = model.generate

        @wraps(generate)
        def scored(*args: Any, **given: Any) -> Any:
            call = GenerateCall(model, generate, args, given)
            _require_plain(call)
            output = generate(*args, **given)
            tokens = output if isinstance(output, Tensor) else output.sequences
            replies = _Replies(tokens, cosines, _end_marks(call))
            scores.extend(replies.scores(model, direction, layer))
            return output

        model.generate = scored
        try:
            yield scores
        finally:
            model.generate = generate


def _end_marks(call: GenerateCall) -> tuple[int, ...]:
    marks = call["eos_token_id"]
    return () if marks is None else tuple(torch.as_tensor(marks).reshape(-1).tolist())


def _require_plain(call: GenerateCall) -> None:
    if (call["num_beams"] or 1) > 1:
        raise DataError(f"num_beams {call['num_beams']} mixes the rows; score with num_beams 1")
    for name in ("stop_strings", "stopping_criteria"):
        if call[name]:
            raise DataError(
                f"{name}: where a reply ended cannot be told from padding; end replies by "
                "eos_token_id, or score their texts with creativity_scores"
            )


class _Replies:
    """What ``generate`` wrote, and the cosines of what it read meanwhile."""

    def __init__(self, tokens: Tensor, cosines: Cosines, end_marks: Sequence[int]) -> None:
        prompts = cosines.prompts
        if prompts is None or prompts.input_ids is None:
            raise DataError("the prompts have no token ids: give generate() input_ids")
        times = len(tokens) // len(prompts.ends)  # samples of a row have the prompt of their row
        self._tokens = tokens.cpu()
        self._table = cosines.table.cpu()
        self._begins = [begin for begin in prompts.begins for _ in range(times)]
        self._ends = [end for end in prompts.ends for _ in range(times)]
        marks = torch.tensor(end_marks, dtype=self._tokens.dtype)
        self._stops = [
            end + _first(torch.isin(row[end:], marks))
            for row, end in zip(self._tokens, self._ends, strict=True)
        ]

    def scores(self, model: Any, direction: Tensor, layer: int) -> list[CreativityScore]:
        """Return one score for each row."""
        live = [
            self._table[row, end - 1 : stop]
            for row, (end, stop) in enumerate(zip(self._ends, self._stops, strict=True))
        ]
        if max(self._stops) <= self._table.shape[1]:
            return [CreativityScore(states) for states in live]
        whole = self._forced(model, direction, layer)
        return [
            CreativityScore(torch.cat([states, score.per_token[len(states) :]]))
            for states, score in zip(live, whole, strict=True)
        ]

    def _forced(self, model: Any, direction: Tensor, layer: int) -> list[CreativityScore]:
        spans = zip(self._tokens, self._begins, self._stops, strict=True)
        rows = [row[begin:stop] for row, begin, stop in spans]
        ends = [end - begin for begin, end in zip(self._begins, self._ends, strict=True)]
        return creativity_of_tokens(model, rows, ends, direction, layer)


def _first(found: Tensor) -> int:
    """Return the place of the first ``True``; behind the end, if there is none."""
    return int(found.int().argmax()) if found.any() else len(found)
