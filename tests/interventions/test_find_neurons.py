"""Which neurons tell two poles apart: against a re-statement in numpy, one chat at a time."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional

from personality_vector.errors import BaseMismatchError, DataError, ModelError, NonFiniteError
from personality_vector.interventions.activations import NeuronSteering
from personality_vector.interventions.neurons.chosen import Neurons, neuron_sites
from personality_vector.interventions.neurons.find import (
    Tally,
    _difference,
    _kept,
    bin_of,
    find_neurons,
    value_of,
)
from personality_vector.subject.chat import render
from personality_vector.subject.models import decoder_blocks, load_model, load_tokenizer
from tests.interventions.neuron_table import listed

TANH = partial(functional.gelu, approximate="tanh")
FAMILIES = {
    "llama": lambda mlp, x: functional.silu(mlp.gate_proj(x)),
    "qwen2": lambda mlp, x: functional.silu(mlp.gate_proj(x)),
    "olmo2": lambda mlp, x: functional.silu(mlp.gate_proj(x)),
    "gemma2": lambda mlp, x: TANH(mlp.gate_proj(x)),
    "phi3": lambda mlp, x: functional.silu(mlp.gate_up_proj(x).chunk(2, -1)[0]),
    "gpt_neox": lambda mlp, x: functional.gelu(mlp.dense_h_to_4h(x)),
    "phi": lambda mlp, x: TANH(mlp.fc1(x)),
    "gpt2": lambda mlp, x: TANH(mlp.c_fc(x)),
}


def activations_of(model, tokenizer, chats, neurons):
    """Return, per block, the activations ``(response tokens, width)`` of all chats."""
    start, end = (tokenizer.convert_tokens_to_ids(mark) for mark in ("<|assistant|>", "<|end|>"))
    inputs = {}
    handles = [
        block.mlp.register_forward_pre_hook(partial(_keep, inputs, layer))
        for layer, block in enumerate(decoder_blocks(model))
    ]
    found = {layer: [] for layer in range(len(handles))}
    for chat in chats:
        ids = tokenizer(render(tokenizer, chat), add_special_tokens=False)["input_ids"]
        response = range(ids.index(start) + 1, len(ids) - 1)
        assert ids[response.stop] == end
        with torch.no_grad():
            model(torch.tensor([ids]))
            for layer, x in inputs.items():
                act = neurons(decoder_blocks(model)[layer].mlp, x)[0]
                found[layer].append(act[list(response)].numpy())
    for handle in handles:
        handle.remove()
    return [np.concatenate(rows) for rows in found.values()]


def _keep(inputs, layer, _mlp, args):
    inputs[layer] = args[0]


def rounded(values):
    """Round to 5 significant bits, halves up, and whatever is below 2**-12 to 0."""
    mantissa, exponent = np.frexp(values)
    result = np.ldexp(np.floor(mantissa * 32 + 0.5) / 32, exponent)
    return np.where(result < 2.0**-12, 0.0, np.minimum(result, 256.0))


def restated(plus, minus, threshold, at_least):
    """Return ``{(layer, index): (difference, a95)}`` of one side."""
    table = {}
    for layer, (own, other) in enumerate(zip(plus, minus, strict=True)):
        difference = (own > 0).mean(0) - (other > 0).mean(0)
        level = rounded(np.percentile(own, 95, axis=0, method="inverted_cdf"))
        table |= {
            (layer, i): (d, a) for i, (d, a) in enumerate(zip(difference, level, strict=True))
        }
    ranked = sorted(table, key=lambda place: (-round(table[place][0], 12), place))
    kept = {place for place in table if table[place][0] >= threshold} | set(ranked[:at_least])
    return {place: table[place] for place in kept if table[place][0] > 1e-12}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("threshold", "at_least"), [(0.15, 5), (0.9, 30)])
def test_the_neurons_are_those_of_the_re_statement(pico, sides, family, threshold, at_least):
    model, tokenizer = load_model(pico(family)), load_tokenizer(pico(family))
    plus, minus = (activations_of(model, tokenizer, chats, FAMILIES[family]) for chats in sides)
    found = find_neurons(
        model, tokenizer, *sides, threshold=threshold, at_least=at_least, batch_size=2
    )
    exact = []
    for side, own, other in ((found.positive, plus, minus), (found.negative, minus, plus)):
        ours, expected = listed(side), restated(own, other, threshold, at_least)
        assert ours.keys() == expected.keys()
        assert len(ours) >= at_least
        for place, (difference, level) in expected.items():
            assert ours[place][0] == pytest.approx(difference, abs=1e-6)
            # In another batch a value may be rounded to the next of 32 steps.
            assert ours[place][1] == pytest.approx(level, rel=1 / 16, abs=2**-12)
            exact.append(ours[place][1] == level)
    assert np.mean(exact) > 0.95
    assert found.counts == (len(sides[0]), len(sides[1]))


def test_the_threshold_is_reached_by_exactly_one_tenth():
    """3 of 10 against 2 of 10 is 0.1; in floating point, 0.3 - 0.2 is less."""
    tallies = []
    for active in (3, 2):
        tally = Tally(1, torch.device("cpu"))
        tally.add(torch.tensor([1.0] * active + [-1.0] * (10 - active))[:, None])
        tallies.append(tally)
    difference = _difference(*tallies)
    assert difference.item() == 0.1 > 0.3 - 0.2
    assert _kept([difference], tallies[:1], 0.1, 0).keys() == {0}
    assert _kept([difference], tallies[:1], 0.1001, 0) == {}


def test_swapped_sides_swap_the_neurons(pico, sides):
    model, tokenizer = load_model(pico("llama")), load_tokenizer(pico("llama"))
    one = find_neurons(model, tokenizer, *sides)
    other = find_neurons(model, tokenizer, *sides[::-1])
    assert listed(one.positive) == listed(other.negative)
    assert listed(one.negative) == listed(other.positive)


def test_a_small_model_keeps_one_in_twenty(pico, sides):
    model, tokenizer = load_model(pico("llama")), load_tokenizer(pico("llama"))
    assert sum(site.width for site in neuron_sites(model)) == 240
    assert find_neurons(model, tokenizer, *sides, threshold=1.0).sizes == (12, 12)


def test_bins_are_monotone_and_hold_what_they_stand_for():
    values = torch.cat([torch.linspace(-1, 300, 5001), torch.logspace(-14, 9, 5001, base=2.0)])
    values = values.sort().values
    bins = bin_of(values)
    assert (bins.diff() >= 0).all()
    expected = torch.from_numpy(np.where(values <= 0, 0.0, rounded(values.clamp(min=0).numpy())))
    torch.testing.assert_close(value_of(bins), expected.float(), rtol=0, atol=0)


@pytest.mark.parametrize("empty", [0, 1])
def test_both_sides_need_chats(pico, sides, empty):
    model, tokenizer = load_model(pico("llama")), load_tokenizer(pico("llama"))
    given = [[] if side == empty else chats for side, chats in enumerate(sides)]
    with pytest.raises(DataError, match=f"no {('positive', 'negative')[empty]} chats"):
        find_neurons(model, tokenizer, *given)


def test_equal_sides_have_no_neurons(pico, sides):
    model, tokenizer = load_model(pico("llama")), load_tokenizer(pico("llama"))
    with pytest.raises(DataError, match="the positive side has no neurons"):
        find_neurons(model, tokenizer, sides[0], sides[0])


def test_experts_are_refused(pico, sides):
    model, tokenizer = load_model(pico("mixtral")), load_tokenizer(pico("mixtral"))
    with pytest.raises(ModelError, match=r"block 0 is a MixtralDecoderLayer, in which 0 MLPs"):
        find_neurons(model, tokenizer, *sides)


def test_blocks_that_share_an_activation_are_refused(llama):
    blocks = decoder_blocks(llama.model)
    blocks[2].mlp.act_fn = blocks[0].mlp.act_fn
    with pytest.raises(ModelError, match="share one activation module"):
        neuron_sites(llama.model)


def test_a_model_of_nan_is_refused_and_left_without_hooks(pico, sides, llama):
    with torch.no_grad():
        decoder_blocks(llama.model)[1].mlp.gate_proj.weight[3] = float("nan")
    with pytest.raises(NonFiniteError, match="layer 1"):
        find_neurons(llama.model, load_tokenizer(pico("llama")), *sides)
    assert not any(module._forward_hooks for module in llama.model.modules())


@pytest.mark.parametrize(
    ("layer", "index", "message"),
    [(1, 80, "neuron 80 of layer 1 does not exist"), (3, 0, "neuron 0 of layer 3 does not exist")],
)
def test_neurons_of_a_larger_model_are_refused(neurons_of, llama, layer, index, message):
    one = Neurons(torch.tensor([index]), torch.tensor([0.5]), torch.ones(1))
    steering = NeuronSteering(replace(neurons_of("llama"), positive={layer: one}))
    with pytest.raises(BaseMismatchError, match=message), steering.applied(llama, 0.0):
        pytest.fail("the body must not run")


@pytest.mark.parametrize(
    ("index", "difference", "a95", "error"),
    [
        ([], [], [], DataError),
        ([2, 1], [0.1, 0.1], [1.0, 1.0], DataError),
        ([1, 1], [0.1, 0.1], [1.0, 1.0], DataError),
        ([-1], [0.1], [1.0], DataError),
        ([1], [0.0], [1.0], DataError),
        ([1], [1.1], [1.0], DataError),
        ([1], [0.1], [-1.0], DataError),
        ([1], [float("nan")], [1.0], NonFiniteError),
        ([1], [0.1], [float("inf")], NonFiniteError),
    ],
)
def test_numbers_that_are_no_neurons_are_refused(index, difference, a95, error):
    with pytest.raises(error):
        Neurons(torch.tensor(index, dtype=torch.int64), torch.tensor(difference), torch.tensor(a95))


def test_a_neuron_has_one_side(neurons_of):
    found = neurons_of("llama")
    with pytest.raises(DataError, match="has a neuron on both sides"):
        replace(found, negative=found.positive)
