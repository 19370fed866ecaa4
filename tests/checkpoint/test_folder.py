"""What lies beside the weights: what is copied, what is refused, and that nothing of it runs."""

import json
import logging
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import personality_vector as pv
from personality_vector.checkpoint import Checkpoint
from personality_vector.errors import CheckpointError, ModelError, PersonalityVectorError


def edit(path, **changes):
    """Change keys of a config."""
    file = path / "config.json"
    config = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps({**config, **changes}))
    return path


@pytest.fixture
def model(pico, tmp_path):
    """Return a copy of a model, to spoil."""
    return shutil.copytree(pico("llama"), tmp_path / "model")


SECRETS = [
    ".env.json",
    "wandb-key.txt",
    "notes.md",
    "training_args.bin",
    "id.tiktoken.json",
    "x.py",
]


def test_side_files_are_known_by_name_and_not_by_ending(model):
    for name in SECRETS:
        (model / name).write_text("{}")
    (model / "LICENSE").write_text("Apache")
    (model / "qwen.tiktoken").write_text("x")
    found = {file.name for file in Checkpoint.open(model).side_files()}
    assert found.isdisjoint(SECRETS)
    assert {"config.json", "tokenizer.json", "LICENSE", "qwen.tiktoken"} <= found


@pytest.mark.parametrize("name", ["tokenizer_config.json", "config.json", "model.safetensors"])
def test_a_link_out_of_the_folder_is_never_followed(model, tmp_path, name, pico_tuned):
    (tmp_path / "elsewhere").write_bytes((model / name).read_bytes())
    (model / name).unlink()
    (model / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=f"{name}: is a link out of its folder"):
        pv.merge(model, [(pico_tuned("llama"), 1.0)], out=tmp_path / "out")
    with pytest.raises(CheckpointError, match="is a link out of its folder"):
        pv.load_model(model)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["tokenizer_config.json", "generation_config.json"])
def test_a_pipe_among_the_side_files_is_refused_without_waiting(model, name):
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    for load in (pv.load_model, pv.load_tokenizer):
        with pytest.raises(CheckpointError, match=name):
            load(model)


QUANTISED = {
    "fp8": {"quantization_config": {"quant_method": "fp8"}},
    "gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "awq": {"quantization_config": {"quant_method": "awq"}},
    "bitsandbytes": {"quantization_config": {"load_in_4bit": True, "quant_method": "bitsandbytes"}},
    "compressed": {"compression_config": {"quant_method": "compressed-tensors"}},
    "mlx": {"quantization": {"group_size": 64, "bits": 4}},
    "in a part": {"text_config": {"quantization_config": {"quant_method": "fp8"}}},
}


@pytest.mark.parametrize("config", QUANTISED.values(), ids=QUANTISED)
def test_a_config_that_says_quantised_is_refused_by_that_word(model, config):
    with pytest.raises(CheckpointError, match=r"config\.json: says .* quantised .*; take the"):
        Checkpoint.open(edit(model, **config))


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("a.weight", torch.zeros(4, 4).to(torch.float8_e4m3fn)),
        ("a.weight", torch.zeros(4, 4).to(torch.float8_e5m2)),
        ("a.weight", torch.zeros(8, 1, dtype=torch.uint8)),
        ("a.weight", torch.zeros(4, 4, dtype=torch.int8)),
        ("a.qweight", torch.zeros(4, 4, dtype=torch.int32)),
        ("a.weight.quant_state.bitsandbytes__nf4", torch.zeros(8, dtype=torch.uint8)),
        ("a.weight_scale_inv", torch.ones(1, 1)),
    ],
)
def test_quantised_tensors_are_refused_whatever_the_config_says(tmp_path, name, tensor):
    save_file({"plain.weight": torch.ones(2, 2), name: tensor}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"tensor a\..*; such weights are codes"):
        Checkpoint.open(tmp_path)


def test_an_empty_quantisation_and_integer_buffers_are_not_quantised(model):
    assert Checkpoint.open(edit(model, quantization_config=None)).names


@pytest.fixture
def coded(model, tmp_path):
    """Return a model that brings code, which leaves a file if it runs."""
    code = f"open({str(tmp_path / 'ran')!r}, 'w')\nfrom transformers import LlamaConfig as Mine\n"
    (model / "configuration_mine.py").write_text(code)
    (model / "modeling_mine.py").write_text(code)
    auto = {"AutoConfig": "configuration_mine.Mine", "AutoModelForCausalLM": "modeling_mine.Mine"}
    return edit(model, model_type="mine", auto_map=auto)


def test_a_merge_copies_code_inert_and_says_what_a_loader_wants(coded, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        done = pv.merge(coded, [(tuned_of(coded, tmp_path), 1.0)], out=tmp_path / "out")
    assert "trust_remote_code=True" in caplog.text
    card = (tmp_path / "out" / "README.md").read_text()
    assert "trust_remote_code=True" in card.replace("\\", "")
    for name in ("configuration_mine.py", "modeling_mine.py"):
        assert (tmp_path / "out" / name).read_bytes() == (coded / name).read_bytes()
        assert name in done.manifest["files"]
    assert not (tmp_path / "ran").exists()


def tuned_of(model, tmp_path):
    tuned = shutil.copytree(model, tmp_path / "tuned")
    weights = load_file(tuned / "model.safetensors")
    weights["model.norm.weight"] += 0.5
    save_file(weights, tuned / "model.safetensors", {"format": "pt"})
    return tuned


def test_loading_never_runs_code_and_never_asks(coded, tmp_path, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    with pytest.raises(ModelError, match="needs code of its own, which is never run"):
        pv.load_model(coded)
    edit(coded, model_type="llama")  # an architecture that transformers has, with code beside it
    pv.load_model(coded)
    tokenizer = json.loads((coded / "tokenizer_config.json").read_text())
    tokenizer |= {"auto_map": {"AutoTokenizer": ["modeling_mine.Mine", None]}}
    tokenizer["tokenizer_class"] = "MineTokenizer"
    (coded / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    with pytest.raises(CheckpointError, match="tokenizer needs code of its own"):
        pv.load_tokenizer(coded)
    assert not (tmp_path / "ran").exists()


KERNELS = [
    {"attn_implementation": "someone/kernel"},
    {"_attn_implementation": "someone/kernel@v1:f"},
    {"attn_implementation": {"": "sdpa", "text_config": "someone/kernel"}},
    {"text_config": {"_attn_implementation_internal": "someone/kernel"}},
    {"experts_implementation": "someone/kernel"},
    {"attn_implementation": "flash_attention_2"},
]


@pytest.mark.parametrize("config", KERNELS)
def test_a_kernel_that_would_be_fetched_is_refused(model, config):
    assert os.environ["USE_HUB_KERNELS"] == "NO"
    with pytest.raises(ModelError, match=r"config\.json: .* names the kernel .*; remove the key"):
        pv.load_model(edit(model, **config))


def test_a_model_folder_with_an_adapter_does_not_load_what_the_adapter_names(model):
    (model / "adapter_config.json").write_text('{"base_model_name_or_path": "someone/else"}')
    with pytest.raises(ModelError, match="holds an adapter"):
        pv.load_model(model)


ODD = {
    "too deep": '{"a":' * 10**5,
    "a list": "[]",
    "not JSON": "{",
    "not UTF-8": b"\xff",
    "sizes of text": '{"model_type": "llama", "hidden_size": "many"}',
    "heads 0": '{"model_type": "llama", "num_attention_heads": 0}',
    "negative": '{"model_type": "llama", "num_hidden_layers": -1}',
    "a list of types": '{"model_type": ["llama"]}',
    "no type": "{}",
    "rope": '{"model_type": "llama", "rope_scaling": {"type": 3}}',
    "dtype": '{"model_type": "llama", "dtype": "float99"}',
}


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_whatever_a_library_makes_of_a_file_is_one_error_of_ours(model, name, content):
    (model / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    load = pv.load_model if name == "config.json" else pv.load_tokenizer
    try:
        load(model)
    except PersonalityVectorError as error:
        said = str(error)
    else:
        said = str(model)  # it can be read like this
    assert str(model) in said
