"""The model card of an export."""

import yaml

from personality_vector.steering.bake.baking import bake_card

BAKED = {
    "base": {"reference": "org/model", "fingerprint": "ab" * 16, "model_type": "llama"},
    "layers": [3],
    "coefficient": -1.5,
    "route": "bias",
    "vector": {"identity": "cd" * 16, "label": "warm [x](y)\n# z", "pole": None, "model": ""},
    "proof": {
        "error": 1e-6,
        "error_asked": 2e-3,
        "effect": 3.0,
        "dtype": "bfloat16",
        "prompts": (4, 16),
        "greedy_tokens": 64,
    },
}


def _metadata(card):
    return yaml.safe_load(card.split("---\n")[1])


def test_it_says_what_was_done_and_how_far_it_is_from_the_hooks():
    card = bake_card(BAKED)
    for said in ("Coefficient: -1.5", "layer 3", "2.0e-03", "1.0e-06", "bfloat16", "every token"):
        assert said in card
    assert _metadata(card)["base_model"] == "org/model"
    assert _metadata(card)["base_model_relation"] == "finetune"


def test_a_label_is_no_markup():
    assert r"warm \[x\](y) \# z" in bake_card(BAKED)


def test_an_adapter_is_loaded_by_peft():
    card = bake_card({**BAKED, "route": "adapter"})
    assert "AutoPeftModelForCausalLM" in card
    assert _metadata(card)["library_name"] == "peft"
    assert _metadata(card)["base_model_relation"] == "adapter"


def test_an_ablation_has_no_coefficient():
    card = bake_card({**BAKED, "route": "ablate", "coefficient": None})
    assert "Coefficient" not in card
    assert "orthogonal" in card


def test_a_local_base_is_no_name_on_the_hub():
    card = bake_card({**BAKED, "base": {**BAKED["base"], "reference": "llama-2"}})
    assert "base_model" not in _metadata(card)
