"""What every changed model owes: it is one model, however it is run; and a merge, restated."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from personality_vector import merge
from personality_vector.numeric.random import generator_for
from personality_vector.subject.prompts import Prompts, reading
from tests.delta.conftest import adapter  # noqa: F401

Differences = dict[str, float]
Weights = dict[str, Tensor]


@pytest.fixture
def merged(tmp_path: Path, weights: Callable[[Path], Weights]) -> Callable[..., Weights]:
    """Return ``merged(base, terms, ...)``: the tensors that a merge wrote."""
    numbers = itertools.count()

    def run(base: Path, terms: Sequence[tuple[Any, float]], **given: Any) -> Weights:
        out = tmp_path / f"merged-{next(numbers)}"
        return weights(merge(base, terms, out=out, **given).path)

    return run


@pytest.fixture(scope="session")
def restated(weights: Callable[[Path], Weights], rounded_once: Any) -> Callable[..., Weights]:
    """Return ``base + sum of alpha * (tuned - base)`` in float64 of numpy, rounded once."""

    def run(base: Path, terms: Sequence[tuple[Path, float]]) -> Weights:
        start, ends = weights(base), [(weights(tuned), alpha) for tuned, alpha in terms]
        result = {}
        for name, tensor in start.items():
            origin = tensor.double().numpy()
            change = sum(alpha * (end[name].double().numpy() - origin) for end, alpha in ends)
            result[name] = rounded_once(origin + change, tensor.dtype)
        return result

    return run


MARK = 7
"""A token that every prompt holds, for the clause ``after``."""

Rows = Sequence[tuple[Tensor, int]]
"""Token ids of a row, and how many of them are the prompt."""


@pytest.fixture(scope="session")
def rows() -> Rows:
    """Return three rows of different length; the longest exceeds the window of pico gemma2."""
    return [_row(3, 2), _row(11, 6), _row(21, 13)]


def _row(length: int, prompt: int) -> tuple[Tensor, int]:
    ids = torch.randint(8, 85, (length,), generator=generator_for(0, f"prompt {length}"))
    ids[(prompt - 1) // 2] = MARK
    return ids, prompt


@pytest.fixture(scope="session")
def prompts(rows: Rows) -> list[Tensor]:
    """Token ids of three lengths."""
    return [ids for ids, _ in rows]


@pytest.fixture(scope="session")
def differences(rows: Rows) -> Callable[[Any], Differences]:
    """Return a check: how far the logits of a model are from its plain forward passes, at most.

    ``cached`` reads the prompt and then token by token, ``chunked`` pieces of four tokens,
    ``right_padded`` and ``left_padded`` run the rows as a batch, ``generated`` compares the logits
    of ``generate`` with a teacher-forced pass, ``generated_in_chunks`` those of a prefill in
    chunks, and ``beams`` the score of beam search with the likelihood of what it found.
    """

    @torch.no_grad()
    def measure(model: Any) -> Differences:
        alone = [_forced(model, row, end) for row, end in rows]
        in_steps = [_cached(model, row, end, [end] + [1] * (len(row) - end)) for row, end in rows]
        chunked = [_cached(model, row, end, _fours(len(row))) for row, end in rows]
        asked = [row[:end] for row, end in rows]
        return {
            "cached": max(map(_largest, in_steps, alone)),
            "chunked": max(map(_largest, chunked, alone)),
            "right_padded": max(map(_largest, _padded(model, rows, left=False), alone)),
            "left_padded": max(map(_largest, _padded(model, rows, left=True), alone)),
            "generated": _generated(model, asked),
            "generated_in_chunks": _generated(model, asked[-1:], prefill_chunk_size=4),
            "beams": _beams(model, asked),
        }

    return measure


def _largest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _fours(length: int) -> list[int]:
    return [4] * (length // 4) + [length % 4] * bool(length % 4)


def _forced(model: Any, row: Tensor, end: int) -> Tensor:
    """Return the logits of one row in one pass."""
    return _cached(model, row, end, [len(row)])


def _cached(model: Any, row: Tensor, end: int, sizes: Sequence[int]) -> Tensor:
    """Return the logits of a row that is read piece by piece."""
    cache, logits = None, []
    # Explicit, since a Qwen2-VL keeps an offset of positions from the last call of generate.
    positions = torch.arange(len(row))[None].split(list(sizes), dim=1)
    with reading(Prompts.of(row[None], ends=[end])):
        for chunk, at in zip(torch.split(row, list(sizes)), positions, strict=True):
            out = model(chunk[None], past_key_values=cache, position_ids=at, use_cache=True)
            cache = out.past_key_values
            logits.append(out.logits[0])
    return torch.cat(logits)


def _padded(model: Any, rows: Rows, *, left: bool) -> list[Tensor]:
    ids, mask = _batch([row for row, _ in rows], left=left)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    begins = mask.argmax(1).tolist()
    ends = [begin + end for begin, (_, end) in zip(begins, rows, strict=True)]
    with reading(Prompts.of(ids, mask, ends)):
        out = model(ids, attention_mask=mask, position_ids=positions, use_cache=False)
    return [row[real.bool()] for row, real in zip(out.logits, mask, strict=True)]


def _batch(rows: Sequence[Tensor], *, left: bool) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids, mask = (torch.zeros(len(rows), longest, dtype=torch.int64) for _ in range(2))
    for index, row in enumerate(rows):
        real = slice(longest - len(row), None) if left else slice(len(row))
        ids[index, real], mask[index, real] = row, 1
    return ids, mask


def _generated(model: Any, rows: Sequence[Tensor], **options: Any) -> float:
    out, width = _generate(model, rows, do_sample=False, output_logits=True, **options)
    replies, drawn = out.sequences[:, width:], torch.stack(out.logits, dim=1)
    worst = 0.0
    for row, reply, logits in zip(rows, replies, drawn, strict=True):
        forced = _forced(model, torch.cat([row, reply]), len(row))
        worst = max(worst, _largest(logits, forced[len(row) - 1 : -1]))
    return worst


def _beams(model: Any, rows: Sequence[Tensor]) -> float:
    out, width = _generate(model, rows, num_beams=3, length_penalty=0.0, output_scores=True)
    worst = 0.0
    for row, reply, score in zip(rows, out.sequences[:, width:], out.sequences_scores, strict=True):
        forced = _forced(model, torch.cat([row, reply]), len(row))[len(row) - 1 : -1]
        likelihood = forced.log_softmax(-1).gather(1, reply[:, None]).sum()
        worst = max(worst, _largest(score, likelihood))
    return worst


def _generate(
    model: Any, rows: Sequence[Tensor], *, new: int = 8, **options: Any
) -> tuple[Any, int]:
    ids, mask = _batch(rows, left=True)
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=new,
        min_new_tokens=new,
        pad_token_id=0,
        eos_token_id=None,
        return_dict_in_generate=True,
        **options,
    )
    return out, ids.shape[1]
