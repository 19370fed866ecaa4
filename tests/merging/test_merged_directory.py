"""A merge writes a whole model: it loads, generates, and says what it was made of."""

import json
from pathlib import Path

import pytest
import torch

from personality_vector import Checkpoint, Delta, Output, merge


@pytest.fixture
def whole(pico, pico_tuned, tmp_path):
    """A merge of pico qwen2 in several shards, as bfloat16."""
    output = Output(dtype="bfloat16", shard_size="40KB")
    terms = [(pico_tuned("qwen2"), 0.5), (pico_tuned("qwen2", seed=1), -0.25)]
    return merge(pico("qwen2"), terms, out=tmp_path / "out", method="ties", output=output)


def test_a_merged_model_loads_and_generates(whole):
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    model = AutoModelForCausalLM.from_pretrained(whole.path, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(whole.path)
    assert model.dtype == torch.bfloat16
    assert GenerationConfig.from_pretrained(whole.path).eos_token_id == 4
    chat = [{"role": "user", "content": "I love"}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    reply = model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert reply.shape[1] == inputs["input_ids"].shape[1] + 4


def test_it_carries_the_side_files_of_the_base(whole, pico):
    kept = {file.name for file in Checkpoint.open(pico("qwen2")).side_files()}
    assert {
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "chat_template.jinja",
    } <= kept
    for name in kept - {"config.json"}:
        assert (whole.path / name).read_bytes() == (pico("qwen2") / name).read_bytes()
    config = Checkpoint.open(pico("qwen2")).config
    assert config["dtype"] == "float32"
    assert Checkpoint.open(whole.path).config == {**config, "dtype": "bfloat16"}


def test_the_manifest_is_last_and_says_everything(whole, pico, pico_tuned):
    manifest = json.loads((whole.path / "MANIFEST.json").read_text())
    assert manifest == whole.manifest
    files = {f.name: f.stat().st_size for f in whole.path.iterdir() if f.name != "MANIFEST.json"}
    assert manifest["files"] == files
    assert {"README.md", "model.safetensors.index.json"} < set(files)
    base = Checkpoint.open(pico("qwen2"))
    assert manifest["base"]["fingerprint"] == base.fingerprint.digest
    assert [term["alpha"] for term in manifest["terms"]] == [0.5, -0.25]
    identity = Delta.between(base, pico_tuned("qwen2")).identity
    assert manifest["terms"][0]["identity"] == identity
    assert manifest["options"]["density"] == 0.2
    assert manifest["output"] == {"dtype": "bfloat16", "rounding": "nearest", "shard_size": "40KB"}
    assert set(manifest["tensors"]) == set(base.names)


def test_same_dtype_copies_the_config_as_it_is(pico, pico_tuned, tmp_path):
    merge(pico("phi"), [(pico_tuned("phi"), 0.5)], out=tmp_path / "out")
    assert (tmp_path / "out/config.json").read_bytes() == (pico("phi") / "config.json").read_bytes()


def test_named_chat_templates_are_carried(toy, tmp_path):
    base, tuned = toy("base", a=torch.ones(2)), toy("tuned", a=torch.zeros(2))
    template = Path("additional_chat_templates") / "tool_use.jinja"
    (base / template).parent.mkdir()
    (base / template).write_text("{{ messages }}")
    path = merge(base, [(tuned, 0.5)], out=tmp_path / "out").path
    assert (path / template).read_text() == "{{ messages }}"
