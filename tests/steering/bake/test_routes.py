"""Which architectures have which route, and why others have none."""

import pytest
from transformers import AutoConfig

from personality_vector.errors import ModelError, RecipeError
from personality_vector.steering.bake import ROUTES, route_for

ROUTE = {
    "llama": "bias",
    "granite": "bias",
    "gpt2": "bias",
    "gpt_neox": "bias",
    "phi": "bias",
    "starcoder2": "bias",
    "qwen2": "convert",
    "qwen3": "adapter",
    "phi3": "adapter",
}


@pytest.mark.parametrize("family", ROUTE)
def test_the_first_possible_route_is_taken(family):
    assert route_for(AutoConfig.for_model(family)) == ROUTE[family]


def test_a_window_decides_between_conversion_and_adapter():
    without = AutoConfig.for_model("mistral", sliding_window=None)
    assert route_for(without) == "convert"
    assert route_for(AutoConfig.for_model("mistral", sliding_window=8)) == "adapter"
    windowed = AutoConfig.for_model(
        "qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1
    )
    assert route_for(windowed) == "adapter"
    with pytest.raises(ModelError, match="sliding window"):
        route_for(windowed, "convert")


def test_an_unknown_rotary_embedding_is_not_converted():
    config = AutoConfig.for_model("qwen2")
    config.rope_parameters = {"rope_type": "spiral", "rope_theta": 1e4}
    assert route_for(config) == "adapter"
    with pytest.raises(ModelError, match="spiral"):
        route_for(config, "convert")


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text", "olmo2", "olmo3", "glm4", "exaone4"])
@pytest.mark.parametrize("wanted", ["auto", *ROUTES])
def test_norms_behind_the_mlp_have_no_route(family, wanted):
    with pytest.raises(ModelError, match=f"{family}: its blocks normalise"):
        route_for(AutoConfig.for_model(family), wanted)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "olmoe"])
def test_experts_have_no_route(family):
    with pytest.raises(ModelError, match="mixture of experts"):
        route_for(AutoConfig.for_model(family))


def test_what_is_not_listed_is_refused():
    with pytest.raises(ModelError, match="xglm: no exact place"):
        route_for(AutoConfig.for_model("xglm"))


def test_a_vision_language_model_is_refused():
    with pytest.raises(ModelError, match="vision-language"):
        route_for(AutoConfig.for_model("gemma3"))


def test_a_quantised_model_is_refused():
    config = AutoConfig.for_model("llama", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match="quantised"):
        route_for(config)


@pytest.mark.parametrize(
    ("family", "wanted", "why"),
    [
        ("qwen3", "bias", "has no bias"),
        ("llama", "convert", "only Qwen2 and Mistral"),
        ("gpt2", "adapter", "transposed"),
        ("bloom", "ablate", "normalises its embeddings"),
    ],
)
def test_a_route_that_is_wanted_and_not_possible_is_refused(family, wanted, why):
    with pytest.raises(ModelError, match=why):
        route_for(AutoConfig.for_model(family), wanted)


def test_a_route_of_no_known_name_is_refused():
    with pytest.raises(RecipeError, match=r"use auto, bias, convert, adapter$"):
        route_for(AutoConfig.for_model("llama"), "fuse")
