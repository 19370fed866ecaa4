"""Law 7: coefficient 0 is the model itself, and a steered model is one model however it is run."""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from personality_vector.intervention import ActivationSteering
from personality_vector.models import decoder_blocks, hidden_size, load_model
from personality_vector.rng import generator_for
from personality_vector.steering import SteeringVector, steered

FAMILIES = ("llama", "qwen2", "gemma2", "gpt_neox", "phi")
TOLERANCE = 1e-5  # float32; logits have a standard deviation of about 2
Hook = Callable[..., Any]


def additions_for(model: Any, size: float = 3.0) -> dict[int, Tensor]:
    return {
        layer: size * torch.randn(hidden_size(model), generator=generator_for(layer, "addition"))
        for layer in range(len(decoder_blocks(model)))
    }


def vector_for(model: Any) -> SteeringVector:
    return SteeringVector(additions_for(model), "", None, "random", "random", (1, 1))


def logits_of(model: Any, rows: list[Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return [model(row[None]).logits[0] for row in rows]


def hooks_on(model: Any) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_coefficient_zero_is_bit_identical(pico, prompts, family, dtype):
    model = load_model(pico(family, dtype), dtype=dtype)
    plain = logits_of(model, prompts)
    with ActivationSteering(vector_for(model), range(-2, 0)).applied(model, 0.0):
        assert hooks_on(model) == 0
        assert all(map(torch.equal, logits_of(model, prompts), plain))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("coefficient", [-1.0, 1.0])
def test_a_steered_model_is_one_model(pico, differences, prompts, family, coefficient):
    model = load_model(pico(family))
    plain = logits_of(model, prompts)
    with ActivationSteering(vector_for(model), [0, -1]).applied(model, coefficient):
        found = differences(model)
        moved = logits_of(model, prompts)
    assert max(found.values()) < TOLERANCE, found
    assert all((one - other).abs().mean() > 0.5 for one, other in zip(moved, plain, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_plain_model_is_one_model(pico, differences, family):
    found = differences(load_model(pico(family)))
    assert max(found.values()) < TOLERANCE, found


def last_position(hidden: Tensor, addition: Tensor) -> Tensor:
    """Persona vectors' ``positions="response"``, re-stated: the last position of each call."""
    moved = hidden.clone()
    moved[:, -1] += addition
    return moved


def first_row(hidden: Tensor, addition: Tensor) -> Tensor:
    moved = hidden.clone()
    moved[0] += addition
    return moved


def after_index(hidden: Tensor, addition: Tensor) -> Tensor:
    """A mask over the chunk, as if it were over the sequence."""
    moved = hidden.clone()
    moved[:, 4:] += addition
    return moved


def in_prefill(hidden: Tensor, addition: Tensor) -> Tensor:
    return hidden + addition if hidden.shape[1] > 1 else hidden


@contextmanager
def wrongly_steered(
    model: Any, additions: Mapping[int, Tensor], rule: Callable[[Tensor, Tensor], Tensor]
) -> Generator[None]:
    handles = [
        decoder_blocks(model)[layer].register_forward_hook(
            lambda _block, _args, output, addition=addition: rule(output, addition)
        )
        for layer, addition in additions.items()
    ]
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("rule", "broken"),
    [
        (last_position, {"cached", "right_padded", "generated"}),
        (first_row, {"right_padded", "left_padded", "generated"}),
        (after_index, {"cached", "left_padded", "generated"}),
        (in_prefill, {"cached", "generated"}),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_check_finds_a_wrong_hook(pico, differences, family, rule, broken):
    model = load_model(pico(family))
    with wrongly_steered(model, additions_for(model), rule):
        found = differences(model)
    assert {check for check, size in found.items() if size > 100 * TOLERANCE} == broken


@pytest.mark.parametrize("family", FAMILIES)
def test_hooks_are_gone_after_an_exception(pico, prompts, family):
    model = load_model(pico(family))
    plain = logits_of(model, prompts)
    registered = []

    def fail() -> None:
        registered.append(hooks_on(model))
        raise KeyError

    with pytest.raises(KeyError), steered(model, additions_for(model)):
        fail()
    assert registered == [len(decoder_blocks(model))]
    assert hooks_on(model) == 0
    assert all(map(torch.equal, logits_of(model, prompts), plain))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_block_moves_by_exactly_the_addition(pico, prompts, family):
    model = load_model(pico(family))
    additions = additions_for(model)
    last = max(additions)
    seen = []

    def record(_block: Any, _args: Any, output: Tensor) -> None:
        seen.append(output)

    for context in (steered(model, {}), steered(model, {last: additions[last]})):
        with context:
            handle = decoder_blocks(model)[last].register_forward_hook(record)
            logits_of(model, prompts[-1:])
            handle.remove()
    assert torch.equal(seen[0] + additions[last], seen[1])


def test_nested_contexts_add_up(pico, prompts):
    model = load_model(pico("llama"))
    one, two = additions_for(model), additions_for(model, -0.7)
    with steered(model, one), steered(model, two):
        nested = logits_of(model, prompts)
    with steered(model, {layer: one[layer] + two[layer] for layer in one}):
        summed = logits_of(model, prompts)
    torch.testing.assert_close(nested, summed, rtol=0, atol=TOLERANCE)
