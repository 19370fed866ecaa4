"""Loading a model that is whole, and finding its decoder blocks."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from personality_vector.checkpoint import Checkpoint
from personality_vector.errors import CheckpointError, DataError, ModelError, PersonalityVectorError
from personality_vector.subject.chat import answered, question
from personality_vector.subject.encoding import encode_chats
from personality_vector.subject.models import (
    decoder_blocks,
    device_of,
    hidden_size,
    load_model,
    load_tokenizer,
    names_on_disk,
    resolve_device,
)
from personality_vector.subject.subject import Subject

BLOCKS = {"llama": 3, "qwen2": 3, "gemma2": 2, "gpt_neox": 3, "phi": 2}


@pytest.fixture
def copy(pico, tmp_path):
    """Return a copy of pico llama that a test may damage."""
    return shutil.copytree(pico("llama"), tmp_path / "copy")


def change(path, edit):
    """Rewrite the tensors of a checkpoint after ``edit(tensors)``."""
    file = path / "model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


@pytest.mark.parametrize("family", BLOCKS)
def test_the_decoder_blocks_of_every_family_are_found(pico, family):
    model = load_model(pico(family))
    blocks = decoder_blocks(model)
    assert len(blocks) == BLOCKS[family]
    assert hidden_size(model) == 48
    seen = []
    hooks = [
        block.register_forward_hook(lambda *_, index=index: seen.append(index))
        for index, block in enumerate(blocks)
    ]
    with torch.no_grad():
        model(torch.tensor([[5, 6, 7]]))
    for hook in hooks:
        hook.remove()
    assert seen == list(range(BLOCKS[family]))


class Twin(nn.Module):
    """Two stacks of one depth; only the second is the decoder's."""

    def __init__(self, *, depth: int) -> None:
        super().__init__()
        self.vision = nn.ModuleList(nn.Linear(1, 1) for _ in range(2))
        self.text = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(1, 1) for _ in range(2))})
        text = SimpleNamespace(num_hidden_layers=depth, hidden_size=1)
        self.config = SimpleNamespace(get_text_config=lambda: text)

    def get_decoder(self) -> nn.Module:
        return self.text


def test_a_vision_tower_of_the_same_depth_is_not_the_decoder():
    model = Twin(depth=2)
    assert decoder_blocks(model) is model.text["layers"]


def test_a_model_without_such_a_stack_is_refused():
    with pytest.raises(ModelError, match=r"no nn.ModuleList of 5 decoder blocks .* name the list"):
        decoder_blocks(Twin(depth=5))


def test_the_configuration_may_name_the_stack():
    model = Twin(depth=5)
    model.config.decoder_blocks = "vision"
    assert decoder_blocks(model) is model.vision
    model.config.decoder_blocks = "text"
    with pytest.raises(
        ModelError, match=r"'text', which is not .* its lists are text.layers, vision"
    ):
        decoder_blocks(model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_dtype_is_the_one_asked_for_not_that_of_the_file(pico, dtype):
    model = load_model(pico("llama", "bfloat16"), dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {getattr(torch, dtype)}
    assert device_of(model) == torch.device("cpu")
    assert not model.training


def test_a_loaded_model_holds_exactly_what_is_on_disk(pico):
    model = load_model(pico("llama"))
    stored = load_file(pico("llama") / "model.safetensors")
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in stored.items())


def test_a_tensor_that_is_missing_is_refused(copy):
    change(copy, lambda tensors: tensors.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(
        ModelError, match=r"disagree on 1 tensors \(e\.g\. model\.layers\.1\.mlp\.up"
    ):
        load_model(copy)


def test_a_tensor_too_many_is_refused(copy):
    change(copy, lambda tensors: tensors.update({"model.layers.7.norm.weight": torch.ones(3)}))
    with pytest.raises(ModelError, match=r"disagree on 1 tensors \(e\.g\. model\.layers\.7"):
        load_model(copy)


def test_a_tensor_of_another_shape_is_named_and_nothing_else_is_printed(copy, capfd):
    change(copy, lambda tensors: tensors.update({"model.norm.weight": torch.ones(47)}))
    said = r"model\.norm\.weight has the shape \[47\], and config\.json makes it \[48\]"
    with pytest.raises(ModelError, match=said):
        load_model(copy)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("llama", {"num_hidden_layers": 2**31}, "num_hidden_layers is more than 10,000, which"),
        ("qwen2", {"num_hidden_layers": 2**31}, "num_hidden_layers is more than 10,000, which"),
        ("llama", {"num_hidden_layers": 10**400}, "num_hidden_layers is more than 10,000, which"),
        ("llama", {"num_labels": 10**7}, "num_labels is more than 10,000, which"),
        ("llama", {"num_hidden_layers": 9000}, "makes a model of more than 2"),
        ("llama", {"vocab_size": 2**40}, "and 5.278e+13 values"),
        ("llama", {"head_dim": 2**31}, "the files hold 30 tensors of 8.443e+04 values in all"),
        ("gpt2", {"n_positions": 2**31}, "and 6.872e+10 values"),
        ("mixtral", {"num_local_experts": 2**31}, "and 6.872e+10 values"),
    ],
)
def test_a_model_larger_than_its_weights_is_refused_before_it_is_built(
    pico, tmp_path, monkeypatch, kind, changes, said
):
    path = shutil.copytree(pico(kind), tmp_path / "copy")
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, **changes}))
    monkeypatch.setattr(nn.Module, "to", None)  # nothing comes as far as a device
    with pytest.raises(ModelError, match=re.escape(said)):
        load_model(path)
    with pytest.raises(ModelError, match=re.escape(said)):
        names_on_disk(Checkpoint.open(path))


def test_a_weight_that_a_file_holds_transposed_is_left_to_transformers(copy):
    change(copy, lambda w: w.update({k: w[k].T.contiguous() for k in w if "up_proj" in k}))
    with pytest.raises(ModelError, match="transformers cannot load this model"):
        load_model(copy)


def test_what_transformers_cannot_convert_back_is_not_compared(copy, monkeypatch):
    def fail(*_):
        raise RuntimeError("no way back")

    monkeypatch.setattr("transformers.core_model_loading.revert_weight_conversion", fail)
    assert load_model(copy).config.model_type == "llama"
    with pytest.raises(ModelError, match="cannot tell how this model is written: no way back"):
        names_on_disk(Checkpoint.open(copy))


def test_code_beside_a_known_kind_of_model_is_not_run_and_nobody_is_asked(copy, monkeypatch):
    config = json.loads((copy / "config.json").read_text())
    beside = {"model_type": "vit", "auto_map": {"AutoModelForCausalLM": "evil.Evil"}}
    (copy / "config.json").write_text(json.dumps({**config, **beside}))
    (copy / "evil.py").write_text("raise SystemExit('run')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody is asked"))
    with pytest.raises(ModelError):
        load_model(copy)
    with pytest.raises(ModelError):
        names_on_disk(Checkpoint.open(copy))


@pytest.mark.parametrize("kind", ["no-such-architecture", None])
def test_an_unknown_architecture_is_refused(copy, kind):
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "model_type": kind}))
    with pytest.raises(ModelError, match="copy: transformers cannot load this model"):
        load_model(copy)


def test_a_folder_without_weights_is_refused(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has neither model\.safetensors nor"):
        load_model(copy)


def test_a_tokenizer_pads_on_the_left_with_some_token(copy):
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (copy / "tokenizer_config.json").write_text(json.dumps({**settings, "padding_side": "right"}))
    tokenizer = load_tokenizer(copy)
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token == tokenizer.eos_token == "<|end|>"


def without_marks(copy):
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    for name in ("pad_token", "eos_token"):
        settings.pop(name)
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("config", "end", "padding"),
    [
        ({"eos_token_id": [4, 3], "pad_token_id": 0}, "<|end|>", "<|endoftext|>"),
        ({"eos_token_id": 4, "pad_token_id": None}, "<|end|>", "<|end|>"),
        ({"text_config": {"eos_token_id": 4}}, "<|end|>", "<|end|>"),
        ({"eos_token_id": 10**6, "pad_token_id": -1}, None, None),
    ],
)
def test_missing_marks_are_those_of_the_configuration_and_noted(copy, config, end, padding):
    without_marks(copy)
    (copy / "generation_config.json").write_text("{}")
    whole = json.loads((copy / "config.json").read_text())
    for name in ("eos_token_id", "pad_token_id"):
        whole.pop(name, None)
    (copy / "config.json").write_text(json.dumps({**whole, **config}))
    tokenizer = load_tokenizer(copy)
    assert (tokenizer.eos_token, tokenizer.pad_token) == (end, padding)
    noted = {"eos_token": end, "pad_token": padding}
    assert tokenizer.chosen == {name: token for name, token in noted.items() if token}
    if padding is None:
        with pytest.raises(DataError, match='add "pad_token" to tokenizer_config'):
            encode_chats(tokenizer, [answered(question("Hi?"), "Hi.")])


def test_a_template_may_lie_beside_the_tokenizer_as_processors_have_it(copy):
    (copy / "chat_template.jinja").rename(copy / "kept")
    text = (copy / "kept").read_text()
    (copy / "chat_template.json").write_text(json.dumps({"chat_template": text}))
    assert load_tokenizer(copy).chat_template == text


def test_a_folder_without_a_tokenizer_is_refused(copy):
    for file in copy.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(CheckpointError, match="the tokenizer cannot be read"):
        load_tokenizer(copy)


def test_a_device_is_resolved_once():
    assert resolve_device("cpu") == "cpu"
    assert resolve_device("auto") == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("family", ["llava", "qwen2_vl", "gemma3"])
def test_a_vision_language_model_is_loaded_whole_and_reads_text(vlm, family):
    model = load_model(vlm(family))
    stack = decoder_blocks(model)
    assert len(stack) == 2
    assert any(stack is module for module in model.get_decoder().modules())
    assert model(torch.tensor([[5, 6, 7]])).logits.shape == (1, 3, 96)


def test_a_module_without_a_configuration_is_refused():
    with pytest.raises(ModelError, match="Linear has no config; give a model of transformers"):
        decoder_blocks(nn.Linear(3, 3))


def test_a_padding_token_without_an_embedding_is_replaced(pico, tmp_path):
    """Many fine-tunes add one to the tokenizer alone."""
    path = shutil.copytree(pico("llama"), tmp_path / "base")
    file = path / "tokenizer_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pad_token": "[PAD]"}))
    subject = Subject.load(path)
    assert (subject.tokenizer.pad_token, subject.tokenizer.chosen["pad_token"]) == (
        "<|end|>",
        "<|end|>",
    )
    assert len(subject.replies([question("Who?"), question("Who are you?")], seed=0)) == 2
    subject.tokenizer.add_tokens(["unheard"])
    with pytest.raises(DataError, match="makes token 301, and the model knows tokens 0 to 299"):
        subject.replies([question("unheard")], seed=1)


def test_a_padding_token_of_the_configuration_without_an_embedding_is_named(copy):
    file = copy / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pad_token_id": 300}))
    with pytest.raises(ModelError, match="pad_token_id is 300, but the model knows tokens 0 to 29"):
        load_model(copy)


@pytest.mark.parametrize("end", ["x", [["a"]], {"a": 1}, [None], 2**64])
def test_ends_of_a_wrong_type_are_named(pico, tmp_path, end):
    path = shutil.copytree(pico("llama"), tmp_path / "base")
    file = path / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "eos_token_id": end}))
    with pytest.raises(PersonalityVectorError, match=r"eos_token_id"):
        Subject.load(path).replies([question("Who?")], seed=0)
