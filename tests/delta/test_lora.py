"""An adapter is a delta: it adds what PEFT would merge, or it is refused."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

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


def of_kind(name, **options):
    import peft

    return getattr(peft, name)(target_modules=["q_proj", "down_proj"], **options)


KINDS = {
    "bias": {"bias": "all"},
    "bias of targets": {"bias": "lora_only"},
    "a layer of its own": {"modules_to_save": ["lm_head"]},
    "norms of its own": {"modules_to_save": ["norm", "embed_tokens"]},
    "ranks": {"rank_pattern": {"q_proj": 2, "layers.1.mlp.up_proj": 3}},
    "alphas": {"alpha_pattern": {"q_proj": 2, "2.mlp.up_proj": 3.5}},
    "embeddings and head": {"target_modules": ["embed_tokens", "q_proj", "lm_head"]},
    "some layers": {"target_modules": ["q_proj"], "layers_to_transform": [0, 2]},
    "without some": {"exclude_modules": ["k_proj", "lm_head"]},
    # What PEFT itself computes.
    "DoRA": {"use_dora": True},
    "a bias in the factors": {"lora_bias": True, "target_modules": ["q_proj"]},
    "tokens": {"trainable_token_indices": [1, 2]},
    "IA3": {"made": of_kind("IA3Config", feedforward_modules=["down_proj"])},
    "LoHa": {"made": of_kind("LoHaConfig", r=2)},
    "LoKr": {"made": of_kind("LoKrConfig", r=2)},
    "VeRA": {"made": of_kind("VeraConfig", r=4)},
    "OFT": {"made": of_kind("OFTConfig", oft_block_size=4)},
}
FAMILIES = {"bias": "qwen2", "bias of targets": "qwen2", "a bias in the factors": "qwen2"}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_adds_what_peft_merges(pico, adapter, kind):
    family = FAMILIES.get(kind, "llama")
    base = Checkpoint.open(pico(family, tied=False))
    path = adapter(family, base=base.path, **KINDS[kind])
    delta, expected = Delta.from_lora(path, base), merged_by_peft(path, base.path)
    assert delta.norm() > 0
    for name in base.names:
        change = delta[name] if name in delta.names else 0.0
        torch.testing.assert_close(base[name] + change, expected[name], rtol=0, atol=1e-6)


def test_parameters_of_experts_are_adapted_by_peft(pico, adapter):
    base = Checkpoint.open(pico("mixtral"))
    targets = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
    path = adapter("mixtral", target_modules=["q_proj"], target_parameters=targets)
    delta, expected = Delta.from_lora(path, base), merged_by_peft(path, base.path)
    assert any(".experts." in name for name in delta.names)
    for name in base.names:
        change = delta[name] if name in delta.names else 0.0
        torch.testing.assert_close(base[name] + change, expected[name], rtol=0, atol=1e-6)


def test_an_adapter_that_peft_cannot_merge_is_refused(pico, adapter):
    assert "PROMPT_TUNING" in refusal(adapter(config={"peft_type": "PROMPT_TUNING"}), pico("llama"))
    assert "peft_type: Input should be a valid string" in refusal(
        adapter(config={"peft_type": None}), pico("llama")
    )


# What config, weights and base say about each other.


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"r": 8}, "rank 4, which is not what adapter_config.json says"),
        ({"target_modules": ["nothing"]}, "which is not what adapter_config.json says"),
        ({"target_modules": "(", "r": 4}, "pattern '\\('"),
        ({"layers_to_transform": [0]}, "which is not what adapter_config.json says"),
    ],
)
def test_config_and_factors_are_compared(pico, adapter, config, said):
    with pytest.raises(CheckpointError, match=said):
        Delta.from_lora(adapter(config=config), pico("llama"))


def test_a_layer_that_is_missing_is_named(pico, adapter):
    path = adapter(weights=lambda w: {k: v for k, v in w.items() if ".layers.1." not in k})
    assert "lacks model.layers.1.mlp.down_proj" in refusal(path, pico("llama"))


def test_an_adapter_of_another_base_is_refused_unless_stated(pico, adapter, changed_model):
    path, other = adapter(), changed_model
    with pytest.raises(BaseMismatchError, match=r"is an adapter of .* beside it in"):
        Delta.from_lora(path, other)
    assert Delta.from_lora(path, other, stated=True).norm() > 0
    moved = shutil.copytree(pico("llama"), other.with_name("moved"))
    assert Delta.from_lora(path, moved).base == Checkpoint.open(moved).fingerprint
    hub = adapter(config={"base_model_name_or_path": "meta-llama/Llama-3.1-8B"})
    assert Delta.from_lora(hub, moved).norm() > 0  # nothing says what that directory holds


@pytest.fixture
def changed_model(pico, tmp_path):
    path = shutil.copytree(pico("llama"), tmp_path / "other")
    weights = load_file(path / "model.safetensors")
    save_file({k: v + 0.01 for k, v in weights.items()}, path / "model.safetensors")
    return path


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


@pytest.mark.parametrize("alpha", [None, "big", [1]])
def test_an_alpha_that_is_no_number_is_refused(pico, adapter, alpha):
    assert "lora_alpha" in refusal(adapter(config={"lora_alpha": alpha}), pico("llama"))


Q = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize("half", ["A", "B"])
def test_a_missing_half_is_named(pico, adapter, half):
    lost = f"{Q}.lora_{half}.weight"
    path = adapter(weights=lambda found: {k: v for k, v in found.items() if k != lost})
    other = f"{Q}.lora_{'BA'['AB'.index(half)]}.weight"
    said = f"adapter_model.safetensors: has {other} without the other factor"
    assert said in refusal(path, pico("llama"))


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
