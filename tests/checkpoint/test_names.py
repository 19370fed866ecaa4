"""Whatever wrote a checkpoint, its language part has the names of the text model."""

import pytest
import torch
from safetensors.torch import save_file

from personality_vector.checkpoint import Checkpoint
from personality_vector.checkpoint.names import canonical, canonical_names, kind
from personality_vector.errors import TensorMismatchError

TEXT = {
    "layers.0.self_attn.q_proj.weight",
    "layers.11.mlp.experts.3.down_proj.weight",
    "layers.3.cross_attn.k_norm.weight",
    "layers.1.linear_attn.conv1d.weight",
    "layers.0.input_layernorm.weight",
    "embed_tokens.weight",
    "embed_tokens_per_layer.weight",
    "per_layer_model_projection.weight",
    "norm.weight",
}
"""Of the body of a text model, below ``model.``."""

LAYOUTS = {
    "text model": ("model.", "lm_head."),
    "llava family, disk": ("language_model.model.", "language_model.lm_head."),
    "in memory, native": ("model.language_model.", "lm_head."),
    "Qwen2-VL, disk": ("model.", "lm_head."),
    "SmolVLM, Idefics3": ("model.text_model.", "lm_head."),
    "5.5.0 to 5.5.3": ("model.language_model.model.", "language_model.lm_head."),
    "5.5.0 Qwen3.5": ("model.language_model.language_model.language_model.", "lm_head."),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_language_part_is_the_text_model(layout):
    body, head = LAYOUTS[layout]
    for name in TEXT:
        assert canonical(f"{body}{name}") == f"model.{name}"
        assert kind(f"{body}{name}") != "vision"
    for name in ("lm_head.weight", "lm_head.bias"):
        assert canonical(name.replace("lm_head.", head)) == name
        assert kind(name.replace("lm_head.", head)) == "head"


VISION = [
    (
        "vision_tower.encoder.layers.0.mlp.fc1.weight",
        "vision_tower.encoder.layers.0.mlp.fc1.weight",
    ),
    ("vision_tower.vision_model.embeddings.x", "vision_tower.embeddings.x"),
    ("model.vision_tower.encoder.layer.0.x", "vision_tower.encoder.layer.0.x"),
    ("model.vision_tower.vision_model.embeddings.x", "vision_tower.embeddings.x"),
    ("vision_tower.transformer.layers.0.x", "vision_tower.transformer.layers.0.x"),
    ("vision_model.global_transformer.layers.0.x", "vision_model.global_transformer.layers.0.x"),
    ("model.vision_model.encoder.layers.0.x", "vision_model.encoder.layers.0.x"),
    ("visual.blocks.0.attn.qkv.weight", "visual.blocks.0.attn.qkv.weight"),
    ("model.visual.merger.mlp.0.bias", "visual.merger.mlp.0.bias"),
    ("model.visual.deepstack_merger_list.0.x", "visual.deepstack_merger_list.0.x"),
    ("model.language_model.visual.blocks.0.x", "visual.blocks.0.x"),
    ("multi_modal_projector.linear_1.weight", "multi_modal_projector.linear_1.weight"),
    ("model.multi_modal_projector.linear_1.weight", "multi_modal_projector.linear_1.weight"),
    ("model.mm_projector.0.weight", "mm_projector.0.weight"),
    (
        "model.connector.modality_projection.proj.weight",
        "connector.modality_projection.proj.weight",
    ),
    ("model.embed_vision.embedding_projection.x", "embed_vision.embedding_projection.x"),
    ("image_newline", "image_newline"),
    ("model.image_newline", "image_newline"),
]


@pytest.mark.parametrize(("name", "expected"), VISION, ids=[name for name, _ in VISION])
def test_other_parts_have_one_name_and_it_is_not_of_the_text(name, expected):
    assert canonical(name) == expected
    assert kind(name) == "vision"


@pytest.mark.parametrize(
    "name",
    [
        "gpt_neox.layers.0.attention.query_key_value.weight",
        "embed_out.weight",
        "h.0.attn.c_attn.weight",
        "model.decoder.layers.0.fc1.bias",
        "mtp.layers.0.mlp.gate_proj.weight",
    ],
)
def test_plain_text_models_of_other_names_keep_them(name):
    assert canonical(name) == name
    assert kind(name) != "vision"


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("transformer.h.0.ln_1.weight", "h.0.ln_1.weight"),
        ("transformer.wte.weight", "wte.weight"),
        ("layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("embed_tokens.weight", "model.embed_tokens.weight"),
    ],
)
def test_a_model_without_its_head_has_the_names_of_the_one_with_it(written, name):
    assert canonical(written) == canonical(name) == name


@pytest.mark.parametrize("name", sorted({name for name, _ in VISION} | TEXT | {"lm_head.weight"}))
def test_a_canonical_name_is_its_own(name):
    assert canonical(canonical(name)) == canonical(name)
    inside = canonical(f"model.language_model.{name}")
    assert canonical(inside) == inside


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.embed_tokens.weight", "embeddings"),
        ("language_model.model.embed_tokens.weight", "embeddings"),
        ("model.language_model.embed_tokens_per_layer.weight", "embeddings"),
        ("gpt_neox.embed_in.weight", "embeddings"),
        ("transformer.wte.weight", "embeddings"),
        ("language_model.lm_head.weight", "head"),
        ("lm_head.bias", "head"),
        ("embed_out.weight", "head"),
        ("model.norm.weight", "norms"),
        ("model.text_model.layers.0.post_attention_layernorm.weight", "norms"),
        ("model.layers.0.self_attn.q_norm.weight", "norms"),
        ("model.final_layernorm.bias", "norms"),
        ("transformer.h.3.ln_2.bias", "norms"),
        ("transformer.ln_f.weight", "norms"),
        ("multi_modal_projector.mm_soft_emb_norm.weight", "vision"),
        ("vision_tower.post_layernorm.weight", "vision"),
        ("model.layers.0.mlp.up_proj.weight", None),
        ("model.layers.0.self_attn.q_proj.bias", None),
        ("model.per_layer_model_projection.weight", None),
        ("transformer.wpe.weight", "embeddings"),
    ],
)
def test_kinds_are_those_that_a_recipe_may_exclude(name, expected):
    assert kind(name) == expected


def written(path, *names) -> Checkpoint:
    save_file({name: torch.zeros(1) for name in names}, path / "model.safetensors")
    return Checkpoint.open(path)


def test_names_on_disk_are_found_by_their_canonical_names(tmp_path):
    found = written(tmp_path, "language_model.model.norm.weight", "vision_tower.x")
    assert canonical_names(found) == {
        "model.norm.weight": "language_model.model.norm.weight",
        "vision_tower.x": "vision_tower.x",
    }


def test_two_tensors_of_one_name_are_refused(tmp_path):
    found = written(tmp_path, "lm_head.weight", "language_model.lm_head.weight")
    with pytest.raises(TensorMismatchError) as caught:
        canonical_names(found)
    assert str(caught.value) == (
        f"{tmp_path}: language_model.lm_head.weight and lm_head.weight are both "
        "lm_head.weight; a model has each tensor once"
    )
