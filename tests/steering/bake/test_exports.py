"""Every listed family: what each of its routes writes computes what hooks do.

In this process, so that all families can be tried; test_baking.py loads some in a new one.
"""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from personality_vector.checkpoint import Checkpoint
from personality_vector.errors import ModelError
from personality_vector.steering.bake import route_for
from personality_vector.steering.bake.base import FAMILIES, Base, family_of
from personality_vector.steering.bake.exports import ablation_export, vector_export
from personality_vector.steering.bake.proof import load_export
from personality_vector.subject.config import read_config
from personality_vector.subject.models import load_model

pytestmark = [
    # PEFT asks transformers for a name that is going away ...
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    # ... and says that such an adapter cannot be merged into its base, which is so.
    pytest.mark.filterwarnings("ignore:`lora_bias=True` was passed"),
]

IDS = torch.arange(5, 45).reshape(2, 20) * 7 % 300
COEFFICIENT = 0.7
SLIDING = {"mistral": {"sliding_window": None}, "smollm3": {"layer_types": ["full_attention"] * 2}}


def _possible(config):
    for name in ("bias", "convert", "adapter", "ablate"):
        try:
            yield route_for(config, name)
        except ModelError:
            continue


def _logits(model):
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def _written(path, vector, route, folder):
    """Return the export of a route, loaded."""
    checkpoint = Checkpoint.open(path)
    config = read_config(checkpoint.path)
    base = Base(checkpoint, config, family_of(config))
    if route == "ablate":
        export = ablation_export(base, vector[1])
    else:
        export = vector_export(route, base, (COEFFICIENT * vector.at(0, 1)).directions)
    folder.mkdir()
    export.write(folder)
    if route == "adapter":
        return load_export(str(path), str(folder), "float32")
    return load_export(str(folder), "", "float32")


def _added(vector):
    """Return what is done to the output of each block: ``h + c v``."""
    return {layer: lambda h, v=vector[layer]: h + COEFFICIENT * v for layer in vector.layers}


def _without(direction):
    unit = direction / direction.norm()
    return lambda hidden: hidden - (hidden @ unit)[..., None] * unit


@pytest.mark.parametrize("family", FAMILIES)
def test_every_route_of_every_family_is_exact(family, small, vector_of, hooked, tmp_path):
    path = small(family, **SLIDING.get(family, {}))
    vector, model = vector_of(path, 0, 1), load_model(path)
    with hooked(model, _added(vector)):
        expected = _logits(model)
    routes = list(_possible(read_config(path)))
    assert routes
    for route in routes:
        if route != "ablate":
            found = _logits(_written(path, vector, route, tmp_path / route))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6, msg=route)
    assert (expected - _logits(model)).abs().max() > 0.01


@pytest.mark.parametrize("family", [name for name, one in FAMILIES.items() if one.embeddings])
def test_ablation_takes_the_direction_out_of_every_write(
    family, small, vector_of, hooked, tmp_path
):
    path = small(family, **SLIDING.get(family, {}))
    vector, model = vector_of(path, 1), load_model(path)
    remove = _without(vector[1])
    names, config = dict(model.named_modules()), read_config(path)
    one = FAMILIES[family]
    handles = [names[f"{one.root}.{one.blocks}.0"].register_forward_pre_hook(_first(remove))]
    for layer in range(2):
        attention = names[f"{one.root}.{one.blocks}.{layer}.{one.attention}"]
        handles.append(attention.register_forward_hook(lambda _m, _a, out: remove(out)))
    with hooked(model, {0: remove, 1: remove}):
        expected = _logits(model)
    for handle in handles:
        handle.remove()
    found = _written(path, vector, route_for(config, "ablate"), tmp_path / "ablated")
    torch.testing.assert_close(_logits(found), expected, atol=1e-5, rtol=1e-5)
    assert (expected - _logits(model)).abs().max() > 0.01
    seen = []
    with hooked(found, {layer: lambda h: seen.append(h) or h for layer in (0, 1)}):
        _logits(found)
    unit = vector[1] / vector[1].norm()
    assert max(float((h @ unit).abs().max() / h.norm(dim=-1).max()) for h in seen) < 1e-6


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gptj", "gpt2"])
def test_ablation_unties_the_head_which_only_reads(family, small, vector_of, tmp_path):
    path = small(family, tie_word_embeddings=True)
    vector, model = vector_of(path, 1), load_model(path)
    route = route_for(read_config(path), "ablate")
    found = _written(path, vector, route, tmp_path / "ablated")
    head, embeddings = found.get_output_embeddings(), found.get_input_embeddings()
    assert torch.equal(head.weight, model.get_output_embeddings().weight)
    unit = vector[1] / vector[1].norm()
    assert float((embeddings.weight.data @ unit).abs().max()) < 1e-6
    assert float((head.weight.data @ unit).abs().max()) > 0.1


@pytest.mark.parametrize("name", ["bias", "ablate"])
def test_old_checkpoints_leave_out_the_root_of_the_names(name, small, vector_of, tmp_path):
    path, old = small("gpt2"), tmp_path / "old"
    old.mkdir()
    tensors = load_file(path / "model.safetensors")
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file(renamed, old / "model.safetensors", {"format": "pt"})
    shutil.copy(path / "config.json", old)
    route = route_for(read_config(path), name)
    found = [
        _logits(_written(one, vector_of(path, 0, 1), route, tmp_path / f"out-{one.name}"))
        for one in (path, old)
    ]
    assert torch.equal(*found)


def test_hooks_on_blocks_alone_are_another_ablation(small, vector_of, hooked, tmp_path):
    """Between attention and MLP the direction passes; so the export must not be compared so."""
    path = small("llama")
    vector, model = vector_of(path, 1), load_model(path)
    remove = _without(vector[1])
    with hooked(model, {0: remove, 1: remove}):
        on_blocks = _logits(model)
    route = route_for(read_config(path), "ablate")
    found = _logits(_written(path, vector, route, tmp_path / "ablated"))
    assert (found - on_blocks).abs().max() > 0.01


def _first(change):
    return lambda _block, args: (change(args[0]), *args[1:])


@pytest.mark.parametrize("family", ["llama", "starcoder2", "granite", "ernie4_5"])
def test_biases_that_are_there_already_are_added_to(family, small, vector_of, hooked, tmp_path):
    path = small(family, **{FAMILIES[family].flag: True})
    vector, model = vector_of(path, 0, 1), load_model(path)
    with hooked(model, _added(vector)):
        expected = _logits(model)
    route = route_for(read_config(path))
    found = _logits(_written(path, vector, route, tmp_path / "out"))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-6)
    assert [file.name for file in (tmp_path / "out").glob("*.safetensors")] == ["model.safetensors"]


YARN = {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 5000.0}}


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen2", {"rope_theta": 123456.0}),
        ("qwen2", {"rope_parameters": {**YARN["rope_parameters"], "rope_type": "linear"}}),
        ("qwen2", YARN),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen2", {"rms_norm_eps": 1e-3}),
        ("qwen2", {"hidden_act": "gelu"}),
        ("mistral", {"num_key_value_heads": 4, "rms_norm_eps": 1e-3, **YARN}),
    ],
    ids=str,
)
def test_a_converted_model_is_the_same_function(
    family, settings, small, vector_of, hooked, tmp_path
):
    path = small(family, **SLIDING.get(family, {}), **settings)
    vector, model = vector_of(path, 0, 1), load_model(path)
    with hooked(model, _added(vector)):
        expected = _logits(model)
    route = route_for(read_config(path), "convert")
    found = _written(path, vector, route, tmp_path / "out")
    assert type(found).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(_logits(found), expected, atol=1e-5, rtol=1e-6)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["rope_theta"] == written["rope_parameters"]["rope_theta"]
