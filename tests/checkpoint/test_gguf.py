"""Models of llama.cpp become the checkpoints that they were made from, or are refused."""

import json
import sys
from contextlib import suppress

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from personality_vector.checkpoint import Checkpoint
from personality_vector.checkpoint.dequantising import dequantise
from personality_vector.checkpoint.gguf_file import GgufFile
from personality_vector.errors import CheckpointError, OutputExistsError, RecipeError
from personality_vector.files.digests import content_of
from tests.gguf_models import gguf, write_gguf

FAMILIES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3_text": "gemma3"}
TEXTS = ("I am  42 of\n them", "<|user|>hi<|end|>", "  7", "it's caf\u00e9", "")


def converted(file, out, **how):
    return dequantise(GgufFile.open(file), out, **how), Checkpoint.open(out)


@pytest.fixture
def written(pico, tmp_path):
    """Return a function that writes pico llama as a GGUF file, changed."""

    def write(change=None, **how):
        return write_gguf(pico("llama"), tmp_path / "m.gguf", change=change, **how)

    return write


@pytest.mark.parametrize(("family", "architecture"), FAMILIES.items())
def test_a_model_becomes_the_checkpoint_that_it_was_made_from(family, architecture, pico, tmp_path):
    source = Checkpoint.open(pico(family))
    file = write_gguf(source.path, tmp_path / "m.gguf", architecture)
    manifest, found = converted(file, tmp_path / "out")
    assert found.names == source.names
    for name in source.names:
        offset = 1.0 if architecture == "gemma3" and name.endswith("norm.weight") else 0.0
        assert torch.equal(found[name], (source[name] + offset) - offset), name
    unlike = {key for key in source.config if source.config[key] != found.config.get(key)}
    assert unlike <= {"layer_types"}, "llama.cpp fixes which layers of Gemma 3 see everything"
    assert (manifest["source"], manifest["digest"]) == ("m.gguf", content_of(file))
    assert (manifest["types"], manifest["dtype"]) == ({"F32": len(found.names)}, "float32")
    before, after = (AutoTokenizer.from_pretrained(one.path) for one in (source, found))
    for text in TEXTS if architecture != "gemma3" else ():  # whose tokenizer is another
        assert after(text)["input_ids"] == before(text)["input_ids"]
    assert after.chat_template == before.chat_template
    assert (after.eos_token, after.pad_token) == (before.eos_token, before.pad_token)
    model = AutoModelForCausalLM.from_pretrained(found.path)
    assert model.generation_config.eos_token_id == before.eos_token_id
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied is source.config["tie_word_embeddings"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_codes_become_the_numbers_that_they_stand_for(dtype, pico, tmp_path):
    source = Checkpoint.open(pico("qwen3"))
    file = write_gguf(source.path, tmp_path / "m.gguf", "qwen3", stored="Q8_0")
    manifest, found = converted(file, tmp_path / "out", dtype=dtype)
    assert manifest["types"]["Q8_0"] > 10
    name, kind = "model.layers.1.mlp.up_proj.weight", gguf.GGMLQuantizationType.Q8_0
    exact = gguf.dequantize(gguf.quantize(source[name].numpy(), kind), kind)
    assert not np.array_equal(exact, source[name].numpy())
    assert torch.equal(found[name], torch.from_numpy(exact).to(getattr(torch, dtype)))
    assert found.config["dtype"] == dtype
    assert "quantization_config" not in found.config


def test_nothing_else_of_the_folder_is_read(written, tmp_path):
    file = written()
    for name in ("config.json", "tokenizer_config.json"):
        auto = {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.T", None]}
        (tmp_path / name).write_text(json.dumps({"auto_map": auto, "model_type": "evil"}))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "generation_config.json").write_text('{"temperature": 9.0, "do_sample": true}')
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    _, found = converted(file, tmp_path / "out")
    assert not (tmp_path / "ran").exists()
    kept = {path.name for path in found.path.iterdir()} - {"chat_template.jinja"}
    assert kept == {
        *("MANIFEST.json", "config.json", "generation_config.json", "model.safetensors"),
        *("tokenizer.json", "tokenizer_config.json"),
    }
    for path in found.path.glob("*.json"):
        assert "/tmp" not in path.read_text(encoding="utf-8")
        assert str(tmp_path) not in path.read_text(encoding="utf-8")
    assert "temperature" not in (found.path / "generation_config.json").read_text()


def _field(name, add, value):
    return lambda writer, _: getattr(writer, add)(name, value)


def _split(number, count):
    def change(writer, _):
        writer.add_uint64("split.no", number)
        writer.add_uint64("split.count", count)

    return change


def _tensor(name, numbers):
    return lambda _, tensors: tensors.update({name: np.array(numbers, "f4")})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_field("general.type", "add_string", "mmproj"), "holds the vision part"),
        (_field("general.type", "add_string", "imatrix"), "statistics for quantising"),
        (_field("general.type", "add_string", "vocab"), "is of type 'vocab', not a model"),
        (_split(0, 3), r"is part 1 of 3 .* its name should end with -00001-of-00003\.gguf, by"),
        (_split(3, 3), "is damaged: it is part 3 of 3"),
        (_split(0, 1 << 40), "is damaged"),
        (lambda _, tensors: tensors.clear(), "holds no tensors"),
        (lambda _, tensors: tensors.pop("blk.1.ffn_up.weight"), "absent are blk.1.ffn_up.weight"),
        (_tensor("blk.0.attn_q.bias", [0.5] * 48), "no place for blk.0.attn_q.bias"),
        (_tensor("output_norm.weight", [np.nan] * 48), "model.norm.weight has NaN"),
        (_tensor("rope_freqs.weight", [1, 2, 3, 4, 5, 6]), "scales its rotary embeddings"),
        (_field("llama.rope.scaling.type", "add_string", "longrope"), r"way \(longrope\)"),
    ],
)
def test_a_file_that_would_become_another_model_is_refused(change, said, written, tmp_path):
    def replaced(writer, tensors):
        del writer.kv_data[0]["general.type"]
        change(writer, tensors)

    with pytest.raises(CheckpointError, match=said):
        converted(written(replaced), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf"]


@pytest.fixture
def parts(pico, tmp_path):
    """Return a model in one file, and the three files that it is split into."""
    whole = write_gguf(pico("qwen3"), tmp_path / "whole.gguf", "qwen3", stored="Q8_0")
    (tmp_path / "parts").mkdir()
    how = {"stored": "Q8_0", "split_max_tensors": 10, "small_first_shard": False}
    write_gguf(pico("qwen3"), tmp_path / "parts" / "m.gguf", "qwen3", **how)
    return whole, sorted((tmp_path / "parts").glob("m-0000?-of-00003.gguf"))


def test_the_parts_of_a_file_become_what_the_whole_becomes(parts, tmp_path):
    whole, (first, *others) = parts
    assert len(others) == 2
    plain, one = converted(whole, tmp_path / "one")
    manifest, joined = converted(first, tmp_path / "joined")
    assert manifest["digests"] == plain["digests"]
    assert joined.fingerprint == one.fingerprint
    assert manifest["source"] == first.name
    assert manifest["parts"] == {file.name: content_of(file) for file in (first, *others)}
    assert "parts" not in plain
    GgufFile.open(first).join(tmp_path / "again.gguf")
    found = {t.name: np.array(t.data) for t in gguf.GGUFReader(tmp_path / "again.gguf").tensors}
    for tensor in gguf.GGUFReader(whole).tensors:
        assert np.array_equal(found.pop(tensor.name), tensor.data)
    assert not found


def test_a_part_that_is_absent_or_of_another_model_is_named(parts, tmp_path, monkeypatch):
    _, (first, second, third) = parts
    with pytest.raises(CheckpointError, match=r"part 2 of 3 of a model; give the first, .*-00001-"):
        GgufFile.open(second)
    kept = third.read_bytes()
    third.write_bytes(second.read_bytes())
    with pytest.raises(CheckpointError, match=r"00003-of-00003\.gguf: should be part 3 of 3; its"):
        GgufFile.open(first)
    third.write_bytes(kept[:-40])
    with pytest.raises(CheckpointError, match=r"00003-of-00003\.gguf: is truncated"):
        GgufFile.open(first)
    third.unlink()
    with pytest.raises(CheckpointError, match=r"is part 1 of 3 .*, is m-00003-of-00003\.gguf$"):
        GgufFile.open(first)
    third.write_bytes(kept)
    monkeypatch.setattr(GgufFile, "require_model", lambda _: third.write_bytes(kept[:-40]))
    with pytest.raises(CheckpointError, match="was changed while it was being read"):
        converted(first, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole.gguf"]


def test_what_transformers_does_not_know_is_refused_by_its_name(pico, written, tmp_path):
    file = write_gguf(pico("llama"), tmp_path / "g.gguf", "granite")
    with pytest.raises(CheckpointError, match="granite is not supported"):
        converted(file, tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"cuts text in a way \('chameleon'\)"):
        converted(written(cut="chameleon"), tmp_path / "out")


def test_a_truncated_or_damaged_file_is_refused_at_once(written):
    file = written()
    whole, random = file.read_bytes(), np.random.default_rng(0)
    data = GgufFile.open(file).tensors[0].start
    for size in (0, 3, 4, 20, 100, data // 2, data - 1, data + 5, len(whole) - 40):
        file.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"is not a GGUF file|is truncated"):
            GgufFile.open(file)
    for place in random.integers(4, data, 80):
        changed = bytearray(whole)
        changed[place : place + 8] = random.bytes(8)
        file.write_bytes(changed)
        with suppress(CheckpointError):
            GgufFile.open(file)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    with pytest.raises(CheckpointError, match="git lfs pull"):
        GgufFile.open(file)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        ("linear", {"rope_type": "linear", "factor": 4.0}),
        ("yarn", {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
        ("llama3", {"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0}),
    ],
)
def test_scaled_rotary_embeddings_are_kept(kind, wanted, written, tmp_path):
    def change(writer, tensors):
        if kind != "llama3":
            writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
            writer.add_rope_scaling_factor(4.0)
            writer.add_rope_scaling_orig_ctx_len(64)
            return
        waves = 2 * np.pi * 10_000.0 ** (np.arange(6) / 6)
        smooth = np.clip((8192 / waves - 1) / 3, 0, 1)
        tensors["rope_freqs.weight"] = (1 / ((1 - smooth) / 8 + smooth)).astype("f4")

    manifest, found = converted(written(change), tmp_path / "out")
    assert wanted.items() <= found.config["rope_parameters"].items()
    assert manifest["left_out"] == (["rope_freqs.weight"] if kind == "llama3" else [])


def test_text_is_cut_and_begun_as_in_llama_cpp(written, tmp_path):
    _, apart = converted(written(cut="smollm"), tmp_path / "apart")
    tokens = AutoTokenizer.from_pretrained(apart.path).tokenize("of  42")
    assert tokens[-4:] == ["\u0120", "\u0120", "4", "2"] or tokens[-3:] == [
        "\u0120\u0120",
        "4",
        "2",
    ]
    assert "Digits" in (apart.path / "tokenizer.json").read_text()

    def begin(writer, _):
        writer.add_bos_token_id(1)
        writer.add_eot_token_id(2)
        del writer.kv_data[0]["tokenizer.ggml.add_bos_token"]

    _, found = converted(written(begin, cut="llama-bpe"), tmp_path / "begun")
    assert AutoTokenizer.from_pretrained(found.path)("I")["input_ids"][0] == 1
    model = AutoModelForCausalLM.from_pretrained(found.path)
    assert model.generation_config.eos_token_id == [2, 4]


def test_an_output_is_never_the_input(written, tmp_path):
    file = written()
    with pytest.raises(OutputExistsError):
        converted(file, tmp_path, force=True)
    with pytest.raises(OutputExistsError):
        converted(file, file, force=True)


def test_without_the_package_it_says_what_to_install(written, monkeypatch):
    file = written()
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(RecipeError, match=r"personality-vector\[gguf\]"):
        GgufFile.open(file)
