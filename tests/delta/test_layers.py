"""A tensor is of one layer and one kind of module, whatever its family calls them."""

import pytest

from personality_vector.checkpoint import Checkpoint
from personality_vector.delta.layers import block_of, grouped, layer_of, module_of


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2", "gpt_neox", "phi"])
def test_every_family_has_embedding_blocks_and_final_norm_in_order(pico, family):
    checkpoint = Checkpoint.open(pico(family))
    blocks = [f"layer {i}" for i in range(checkpoint.config["num_hidden_layers"])]
    head = [] if checkpoint.config["tie_word_embeddings"] else ["head"]
    groups = grouped(checkpoint.names)
    assert list(groups) == ["embedding", *blocks, "final norm", *head]
    assert sorted(name for names in groups.values() for name in names) == list(checkpoint.names)


def test_a_module_is_the_same_in_every_block_and_holds_its_bias():
    names = [f"model.layers.{i}.self_attn.q_proj.{p}" for i in (0, 11) for p in ("weight", "bias")]
    assert {module_of(name) for name in names} == {"self_attn.q_proj"}
    assert [layer_of(name) for name in names[1:3]] == ["layer 0", "layer 11"]


@pytest.mark.parametrize(
    ("name", "layer", "module"),
    [
        ("model.layers.2.post_attention_layernorm.weight", "layer 2", "norm"),
        ("transformer.h.2.ln_1.bias", "layer 2", "norm"),
        ("model.layers.0.self_attn.q_norm.weight", "layer 0", "norm"),
        ("model.layers.3.mlp.experts.7.w1.weight", "layer 3", "mlp.experts.w1"),
        ("model.layers.3.linear_attn.A_log", "layer 3", "linear_attn.A_log"),
        ("model.visual.blocks.2.attn.qkv.weight", "visual layer 2", "attn.qkv"),
        ("model.projector.weight", "model.projector", "model.projector"),
        ("conv1.weight", "conv1", "conv1"),
    ],
)
def test_other_names(name, layer, module):
    assert (layer_of(name), module_of(name)) == (layer, module)


def test_layers_stand_in_the_order_of_their_numbers():
    names = [f"h.{i}.w" for i in (10, 9, 100)] + ["lm_head.weight", "wte.weight", "z", "ln_f.bias"]
    order = ["embedding", "layer 9", "layer 10", "layer 100", "final norm", "head", "z"]
    assert list(grouped(names)) == order


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.mlp.up_proj.weight", ("model.layers", 3)),
        ("transformer.h.11.attn.weight", ("transformer.h", 11)),
        ("gpt_neox.layers.0.attention.bias", ("gpt_neox.layers", 0)),
        ("model.visual.blocks.31.norm1.bias", ("model.visual.blocks", 31)),
        ("model.layers.2.moe.experts.7.w1.weight", ("model.layers", 2)),
        ("encoder.layer.4.output.dense.weight", ("encoder.layer", 4)),
        ("decoder.block.1.layer.0.q.weight", ("decoder.block", 1)),
        ("model.norm.weight", None),
        ("lm_head.weight", None),
        ("model.experts.3.weight", None),
        ("model.layers.norm.weight", None),
        ("model.players.3.weight", None),
    ],
)
def test_the_layer_is_read_off_the_name(name, place):
    block = block_of(name)
    assert (block and block[:2]) == place
