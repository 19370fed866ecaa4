"""An adapter is a delta: it adds what PEFT would merge, or it is refused."""

import json
import shutil
import warnings

import pytest
import torch

from personality_vector.checkpoint import Checkpoint
from personality_vector.delta import Delta
from personality_vector.errors import BaseMismatchError, CheckpointError, TensorMismatchError


def merged_by_peft(path, base) -> Checkpoint:
    """Return what PEFT merges, as it is named on disk."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings(action="ignore"):  # PEFT reads a property that is deprecated
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), path)
    out = path.with_name(f"{path.name}-merged")
    model.merge_and_unload().save_pretrained(out)
    return Checkpoint.open(out)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "phi"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_rslora": True},
        {"r": 3, "lora_alpha": 5, "target_modules": r".*(dense|q_proj|qkv).*"},
    ],
    ids=["plain", "rslora", "some modules"],
)
def test_it_adds_what_peft_merges(pico, adapter, family, options):
    path, base = adapter(family, **options), Checkpoint.open(pico(family))
    delta, expected = Delta.from_lora(path, base), merged_by_peft(path, base.path)
    assert delta.names
    for name in base.names:
        change = delta[name] if name in delta.names else 0.0
        torch.testing.assert_close(base[name] + change, expected[name], rtol=0, atol=1e-6)
        assert (name in delta.names) == (not torch.equal(base[name], expected[name]))


def test_the_base_comes_from_the_config_unless_given(pico, adapter):
    path = adapter()
    assert Delta.from_lora(path).base == Checkpoint.open(pico("llama")).fingerprint
    nameless = adapter(config={"base_model_name_or_path": None})
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: names no base"):
        Delta.from_lora(nameless)


def test_identity_is_of_the_factors_the_scale_and_the_base(pico, adapter, tmp_path):
    path = adapter()
    delta = Delta.from_lora(path, pico("llama"), pole="openness:high")
    moved = Delta.from_lora(shutil.copytree(path, tmp_path / "moved"), pico("llama"))
    assert moved.identity == delta.identity
    assert (delta.label, moved.label) == ("openness:high", "moved")
    assert Delta.from_lora(adapter(lora_alpha=7), pico("llama")).identity != delta.identity


def test_two_scales_are_two_identities(pico, adapter):
    plain, stabilised = adapter(), adapter(use_rslora=True)
    one, two = (Delta.from_lora(path, pico("llama")) for path in (plain, stabilised))
    assert one.norm() != pytest.approx(two.norm())
    assert one.identity != two.identity


def refusal(path, base) -> str:
    with pytest.raises(CheckpointError) as caught:
        Delta.from_lora(path, base)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"use_dora": True}, "it sets use_dora"),
        ({"bias": "all"}, "it sets bias"),
        ({"bias": "lora_only"}, "it sets bias"),
        ({"lora_bias": True}, "it sets lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "it sets modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "it sets rank_pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "it sets alpha_pattern"),
        ({"trainable_token_indices": [1, 2]}, "it sets trainable_token_indices"),
        ({"target_modules": ["embed_tokens", "q_proj"]}, "not plain LoRA factors"),
    ],
)
def test_what_is_more_than_lora_is_refused(pico, adapter, options, said):
    assert said in refusal(adapter(**options), pico("llama"))


@pytest.mark.parametrize("config", [{"peft_type": "IA3"}, {"peft_type": None}])
def test_other_kinds_of_adapter_are_refused(pico, adapter, config):
    assert "only LoRA" in refusal(adapter(config=config), pico("llama"))


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_an_adapter_that_changed_its_base_is_refused_or_right(pico, adapter, init):
    path, base = adapter(init_lora_weights=init), Checkpoint.open(pico("llama"))
    expected = merged_by_peft(path, base.path)
    try:
        delta = Delta.from_lora(path, base)
    except CheckpointError:
        return
    for name in delta.names:
        torch.testing.assert_close(base[name] + delta[name], expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "config",
    [{"alora_invocation_tokens": [1]}, {"layer_replication": [[0, 2]]}, {"use_qalora": True}],
)
def test_adapters_that_cannot_be_merged_are_refused(pico, adapter, config):
    (key,) = config
    assert key in refusal(adapter(config=config), pico("llama"))


@pytest.mark.parametrize("alpha", [None, "big", [1]])
def test_an_alpha_that_is_no_number_is_refused(pico, adapter, alpha):
    assert "lora_alpha" in refusal(adapter(config={"lora_alpha": alpha}), pico("llama"))


Q = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize("half", ["A", "B"])
def test_a_missing_half_is_named(pico, adapter, half):
    lost = f"{Q}.lora_{half}.weight"
    path = adapter(weights=lambda found: {k: v for k, v in found.items() if k != lost})
    assert f"adapter_model.safetensors: lacks {lost}" in refusal(path, pico("llama"))


def test_a_module_that_the_base_lacks_is_named(pico, adapter):
    path = adapter(
        weights=lambda found: {k.replace("layers.2", "layers.9"): v for k, v in found.items()}
    )
    with pytest.raises(TensorMismatchError, match=r"model\.layers\.9\..* does not have"):
        Delta.from_lora(path, pico("llama"))


@pytest.mark.parametrize("half", ["A", "B"])
def test_factors_that_do_not_fit_are_named(pico, adapter, half):
    odd = f"{Q}.lora_{half}.weight"
    cut = {"A": lambda t: t[:, :-1].clone(), "B": lambda t: t[:-1].clone()}[half]
    path = adapter(weights=lambda found: {**found, odd: cut(found[odd])})
    with pytest.raises(TensorMismatchError, match=r"layers\.1\.self_attn\.q_proj: factors"):
        Delta.from_lora(path, pico("llama"))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_incomplete_adapter_is_refused_by_file(pico, adapter, name):
    path = adapter()
    (path / name).unlink()
    assert name in refusal(path, pico("llama"))


def test_an_adapter_whose_manifest_names_another_base_is_refused(pico, pico_tuned, adapter):
    path, base = adapter(), Checkpoint.open(pico("llama"))
    manifest = {"kind": "train", "base": {"fingerprint": base.fingerprint.digest}}
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    assert Delta.from_lora(path, base).names
    with pytest.raises(BaseMismatchError, match="was trained on base"):
        Delta.from_lora(path, pico_tuned("llama"))
