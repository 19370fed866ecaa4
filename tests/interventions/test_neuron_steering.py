"""Neuron steering: its equation, that it is one model however it is run, and its storage."""

import json
from dataclasses import replace
from math import exp

import pytest
import torch

from personality_vector.errors import CheckpointError, DataError, ModelError, RecipeError
from personality_vector.interventions.activations import NeuronSteering
from personality_vector.interventions.neurons.chosen import NeuronSet
from personality_vector.numeric.random import generator_for
from personality_vector.steering import ALL
from personality_vector.subject.models import decoder_blocks, load_model
from personality_vector.subject.prompts import Prompts, reading
from personality_vector.subject.subject import Subject
from tests.interventions.neuron_table import listed

FAMILIES = ("llama", "qwen2", "gemma2", "gpt_neox", "phi", "gpt2", "phi3")
TOLERANCE = 1e-5  # float32; logits have a standard deviation of about 2
ROWS = [
    torch.randint(5, 300, (length,), generator=generator_for(0, f"row {length}"))
    for length in (4, 9, 14)
]


def forced(model, row, end):
    """Return the logits of one row, read at once, whose response begins at ``end``."""
    with torch.no_grad(), reading(Prompts.of(row[None], ends=[end])):
        return model(row[None]).logits[0]


def activations(model, row, end):
    """Return the activations of every block, as the next layer sees them."""
    names = ("act_fn", "act", "activation_fn")
    seen, handles = [], []
    for block in decoder_blocks(model):
        module = next(getattr(block.mlp, name) for name in names if hasattr(block.mlp, name))
        handles.append(module.register_forward_hook(lambda _m, _a, out: seen.append(out[0])))
    forced(model, row, end)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("gamma", [1.5, -0.5])
def test_the_first_block_is_edited_as_the_equation_says(pico, neurons_of, family, gamma):
    model, found = load_model(pico(family)), neurons_of(family)
    row, end = ROWS[2], 6
    plain = activations(model, row, end)[0]
    with NeuronSteering(found).applied(Subject(model, None), gamma):
        steered = activations(model, row, end)[0]
    up, down = (listed(side) for side in (found.positive, found.negative))
    if gamma < 0:
        up, down = down, up
    expected = plain.clone()
    for (layer, index), (difference, a95) in up.items():
        if layer == 0:
            expected[end:, index] += abs(gamma) * a95 / (1 + exp(-10 * (difference - 0.15)))
    for layer, index in down:
        if layer == 0:
            expected[end:, index] = expected[end:, index].clamp(max=0)
    torch.testing.assert_close(steered, expected, rtol=1e-6, atol=1e-6)
    touched = {index for layer, index in (*up, *down) if layer == 0}
    assert touched
    untouched = [i for i in range(plain.shape[1]) if i not in touched]
    assert torch.equal(steered[:, untouched], plain[:, untouched])
    assert torch.equal(steered[:end], plain[:end])


@pytest.mark.parametrize("family", FAMILIES)
def test_generated_is_teacher_forced_and_padding_changes_nothing(pico, neurons_of, family):
    model, new = load_model(pico(family)), 6
    longest = max(map(len, ROWS))
    ids, mask = (torch.zeros(len(ROWS), longest, dtype=torch.int64) for _ in range(2))
    for index, row in enumerate(ROWS):
        ids[index, longest - len(row) :], mask[index, longest - len(row) :] = row, 1
    with NeuronSteering(neurons_of(family)).applied(Subject(model, None), 1.5), torch.no_grad():
        out = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=new,
            min_new_tokens=new,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        drawn = torch.stack(out.logits, dim=1)
        for index, row in enumerate(ROWS):
            whole = torch.cat([row, out.sequences[index, longest:]])
            logits = forced(model, whole, len(row))[len(row) - 1 : -1]
            torch.testing.assert_close(drawn[index], logits, rtol=0, atol=TOLERANCE)
    unsteered = forced(model, whole, len(row))[len(row) - 1 : -1]
    # The first new token is drawn from the prompt, which is not steered; the others are.
    torch.testing.assert_close(logits[0], unsteered[0], rtol=0, atol=TOLERANCE)
    assert (logits[1:] - unsteered[1:]).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("family", FAMILIES)
def test_chunks_of_a_cache_are_the_whole(pico, neurons_of, family):
    model, row, end = load_model(pico(family)), ROWS[2], 6
    with NeuronSteering(neurons_of(family)).applied(Subject(model, None), -1.0), torch.no_grad():
        whole = forced(model, row, end)
        cache, parts = None, []
        with reading(Prompts.of(row[None], ends=[end])):
            for chunk in torch.split(row, [4, 5, 1, 4]):
                out = model(chunk[None], past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                parts.append(out.logits[0])
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=TOLERANCE)


def test_all_positions_need_no_prompt_and_the_response_does(pico, neurons_of):
    model, row = load_model(pico("llama")), ROWS[1]
    everywhere = NeuronSteering(neurons_of("llama"), positions=ALL)
    with torch.no_grad(), everywhere.applied(Subject(model, None), 1.0):
        logits = model(row[None]).logits[0]
        torch.testing.assert_close(forced(model, row, 3), logits, rtol=0, atol=0)
    with (
        NeuronSteering(neurons_of("llama")).applied(Subject(model, None), 1.0),
        pytest.raises(DataError, match="where the prompt ends is unknown"),
    ):
        model(row[None])


def test_a_gradient_flows_through_the_edit(pico, neurons_of):
    model, row = load_model(pico("llama")), ROWS[1]
    with (
        NeuronSteering(neurons_of("llama")).applied(Subject(model, None), 1.0),
        reading(Prompts.of(row[None], ends=[3])),
    ):
        model(row[None], labels=row[None]).loss.backward()
    gradient = decoder_blocks(model)[0].mlp.gate_proj.weight.grad
    assert gradient is not None
    assert torch.isfinite(gradient).all()
    assert gradient.any()


def test_half_the_neurons_are_raised_by_a_draw_that_a_seed_repeats(pico, neurons_of):
    model, row = load_model(pico("llama")), ROWS[2]
    found = neurons_of("llama")

    def steered(**given):
        with NeuronSteering(found, **given).applied(Subject(model, None), 1.0):
            return [activations(model, row, 6)[0] for _ in range(2)]

    first, second = steered(keep=0.5)
    again = steered(keep=0.5)
    assert torch.equal(first, again[0])
    assert torch.equal(second, again[1])
    assert not torch.equal(first, second)
    assert not torch.equal(first, steered(keep=0.5, seed=1)[0])
    whole = steered()[0]
    plain = activations(model, row, 6)[0]
    raised = found.positive[0].index
    for index in raised.tolist():
        assert torch.equal(first[:, index], plain[:, index]) or torch.equal(
            first[:, index], whole[:, index]
        )
    assert not torch.equal(first[:, raised], plain[:, raised])


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.1, float("nan")])
def test_a_probability_that_is_none_is_refused(neurons_of, keep):
    with pytest.raises(RecipeError, match="keep must be in"):
        NeuronSteering(neurons_of("llama"), keep=keep)


def test_a_hook_that_another_tool_left_behind_is_refused(pico, neurons_of):
    model = load_model(pico("llama"))
    handle = decoder_blocks(model)[1].register_forward_hook(lambda _m, _a, out: out)
    steering = NeuronSteering(neurons_of("llama"))
    with (
        pytest.raises(ModelError, match=r"layers\.1 already has a hook or wrapper from tests"),
        steering.applied(Subject(model, None), 1.0),
    ):
        pass
    handle.remove()
    with steering.applied(Subject(model, None), 1.0), steering.applied(Subject(model, None), 1.0):
        pass


# --- storage ---


def test_what_is_saved_is_what_is_loaded(neurons_of, tmp_path):
    found = replace(neurons_of("llama"), model="0123", label="loud")
    assert found.save(tmp_path / "n") == tmp_path / "n"
    loaded = NeuronSet.load(tmp_path / "n")
    assert listed(loaded.positive) == listed(found.positive)
    assert listed(loaded.negative) == listed(found.negative)
    assert (loaded.model, loaded.pole, loaded.label) == (found.model, found.pole, found.label)
    assert (loaded.counts, loaded.sizes) == (found.counts, found.sizes)
    assert json.loads((tmp_path / "n" / "MANIFEST.json").read_text())["kind"] == "neurons"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "neurons.json").unlink(), "neurons.json: is missing"),
        (lambda folder: (folder / "neurons.json").write_text("{}"), "is not the record"),
        (lambda folder: _change(folder, sizes=[1, 1]), "do not belong together"),
        (lambda folder: (folder / "neurons.safetensors").write_bytes(b"x"), "neurons.safetensors"),
    ],
)
def test_a_damaged_folder_is_refused(neurons_of, tmp_path, damage, message):
    folder = neurons_of("llama").save(tmp_path / "n")
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        NeuronSet.load(folder)


def _change(folder, **values):
    record = json.loads((folder / "neurons.json").read_text())
    (folder / "neurons.json").write_text(json.dumps(record | values))
