"""What every changed model owes: it is one model, however it is run; and a merge, restated."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from personality_vector import merge
from personality_vector.rng import generator_for

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


@pytest.fixture(scope="session")
def prompts() -> list[Tensor]:
    """Token ids of three lengths; the longest exceeds the window of pico gemma2."""
    return [
        torch.randint(5, 300, (length,), generator=generator_for(0, f"prompt {length}"))
        for length in (3, 11, 21)
    ]


@pytest.fixture(scope="session")
def differences(prompts: list[Tensor]) -> Callable[[Any], Differences]:
    """Return a check: how far the logits of a model are from its plain forward passes, at most.

    ``cached`` reads in chunks and token by token, ``right_padded`` and ``left_padded`` run the
    rows as a batch, ``generated`` compares the logits of ``generate`` with a teacher-forced pass.
    """

    @torch.no_grad()
    def measure(model: Any) -> Differences:
        alone = [model(row[None], use_cache=False).logits[0] for row in prompts]
        return {
            "cached": max(map(_largest, [_cached(model, row) for row in prompts], alone)),
            "right_padded": max(map(_largest, _padded(model, prompts, left=False), alone)),
            "left_padded": max(map(_largest, _padded(model, prompts, left=True), alone)),
            "generated": _generated(model, prompts),
        }

    return measure


def _largest(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _cached(model: Any, row: Tensor) -> Tensor:
    """Return the logits of a prefill in two chunks, followed by single tokens."""
    half = len(row) // 2
    cache, logits = None, []
    for chunk in torch.split(row, [half, 1] + [1] * (len(row) - half - 1)):
        out = model(chunk[None], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits.append(out.logits[0])
    return torch.cat(logits)


def _padded(model: Any, rows: Sequence[Tensor], *, left: bool) -> list[Tensor]:
    ids, mask = _batch(rows, left=left)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    return [row[real.bool()] for row, real in zip(logits, mask, strict=True)]


def _batch(rows: Sequence[Tensor], *, left: bool) -> tuple[Tensor, Tensor]:
    longest = max(map(len, rows))
    ids, mask = (torch.zeros(len(rows), longest, dtype=torch.int64) for _ in range(2))
    for index, row in enumerate(rows):
        real = slice(longest - len(row), None) if left else slice(len(row))
        ids[index, real], mask[index, real] = row, 1
    return ids, mask


def _generated(model: Any, rows: Sequence[Tensor], new: int = 8) -> float:
    ids, mask = _batch(rows, left=True)
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=new,
        min_new_tokens=new,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    replies, drawn = out.sequences[:, ids.shape[1] :], torch.stack(out.logits, dim=1)
    worst = 0.0
    for row, reply, logits in zip(rows, replies, drawn, strict=True):
        forced = model(torch.cat([row, reply])[None], use_cache=False).logits[0]
        worst = max(worst, _largest(logits, forced[len(row) - 1 : -1]))
    return worst
