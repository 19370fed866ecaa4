"""Pickles: tensors come out bit for bit, nothing else comes out and nothing runs."""

import json
import os
import pickle
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch.torch_version import TorchVersion

from personality_vector.checkpoint import Checkpoint
from personality_vector.checkpoint.pickles import convert, write_safetensors
from personality_vector.errors import CheckpointError, OutputExistsError, StorageError
from personality_vector.manifest import MANIFEST
from personality_vector.numeric.random import generator_for


class Evil:
    """What runs a command when a pickle is read carelessly."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.fixture
def pickled(tmp_path):
    """Return ``pickled(*shards, **config)``: a checkpoint directory of pickled state dicts."""

    def write(*shards, edit=lambda weight_map: weight_map, **config):
        path = tmp_path / "pickled"
        path.mkdir()
        (path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
        (path / "tokenizer.json").write_text("{}")
        names = [f"pytorch_model-{n}-of-{len(shards)}.bin" for n in range(1, len(shards) + 1)]
        if len(shards) == 1:
            names = ["pytorch_model.bin"]
        else:
            found = {key: name for name, s in zip(names, shards, strict=True) for key in s}
            index = {"metadata": {}, "weight_map": edit(found)}
            (path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
        for name, shard in zip(names, shards, strict=True):
            torch.save(shard, path / name)  # noqa: TID251
        return path

    return write


def assert_same(path, expected):
    checkpoint = Checkpoint.open(path)
    assert checkpoint.names == tuple(sorted(expected))
    for name, tensor in expected.items():
        assert checkpoint[name].dtype == tensor.dtype
        assert torch.equal(checkpoint[name], tensor)


def test_one_file_comes_out_bit_for_bit_with_its_side_files(pickled, tensors, tmp_path):
    source = pickled({**tensors, "transposed": tensors["a.weight"].T})
    manifest = convert(source, tmp_path / "out")
    assert_same(tmp_path / "out", {**tensors, "transposed": tensors["a.weight"].T})
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == sorted(
        [MANIFEST, "config.json", "model.safetensors", "tokenizer.json"]
    )
    assert manifest["kind"] == "convert"
    assert manifest["weights"] == Checkpoint.open(tmp_path / "out").fingerprint.digest


def test_shards_stay_shards_and_only_the_new_index_is_left(pickled, tensors, tmp_path):
    names = sorted(tensors)
    source = pickled({n: tensors[n] for n in names[:2]}, {n: tensors[n] for n in names[2:]})
    convert(source, tmp_path / "out")
    assert_same(tmp_path / "out", tensors)
    assert sorted(file.name for file in (tmp_path / "out").glob("*model*")) == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


@pytest.mark.parametrize(
    ("tied", "shared", "kept"),
    [(True, True, False), (False, True, True), (None, True, True), (True, False, True)],
)
def test_a_tied_head_is_stored_once(pickled, tmp_path, tied, shared, kept):
    embedding = torch.randn(4, 3, generator=generator_for(0, "embedding"))
    head = embedding if shared else embedding.clone()
    config = {} if tied is None else {"tie_word_embeddings": tied}
    state = {"lm_head.weight": head, "model.embed_tokens.weight": embedding}
    manifest = convert(pickled(state, **config), tmp_path / "out")
    if not kept:
        del state["lm_head.weight"]
    assert_same(tmp_path / "out", state)
    assert manifest["left_out"] == ([] if kept else ["lm_head.weight"])


def test_transformers_loads_the_same_model(pico, tmp_path):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(pico("qwen2"))
    source = tmp_path / "pickled"
    source.mkdir()
    model.config.save_pretrained(source)
    torch.save(model.state_dict(), source / "pytorch_model.bin")  # noqa: TID251
    manifest = convert(source, tmp_path / "out")
    assert manifest["left_out"] == ["lm_head.weight"]
    assert manifest["weights"] == Checkpoint.open(pico("qwen2")).fingerprint.digest
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert all(torch.equal(again.state_dict()[n], t) for n, t in model.state_dict().items())


def test_an_evil_pickle_is_named_and_leaves_nothing(pickled, tmp_path):
    marker = tmp_path / "marker"
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin: asks for posix.system, which"):
        convert(pickled({"a": torch.zeros(2), "b": Evil(marker)}), tmp_path / "out")
    assert not marker.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", ["zip", "legacy", "bare"])
def test_an_evil_pickle_does_not_run(tmp_path, how):
    marker, file = tmp_path / "marker", tmp_path / "weights.bin"
    if how == "bare":
        file.write_bytes(pickle.dumps(Evil(marker), protocol=2))
    else:
        torch.save({"b": Evil(marker)}, file, _use_new_zipfile_serialization=how == "zip")  # noqa: TID251
    with pytest.raises(CheckpointError, match=r"asks for posix.system, which is not weights"):
        write_safetensors(file, tmp_path / "model.safetensors", tied=False)
    assert not marker.exists()
    if how == "bare":
        pickle.loads(file.read_bytes())  # noqa: S301
    else:
        torch.load(file, weights_only=False)  # noqa: TID251
    assert marker.exists(), "the pickle of this test was harmless"


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"a": torch.zeros(2), "epoch": 3}, "epoch is a int, not a tensor"),
        ({"model": {"a": torch.zeros(2)}}, "model is a dict, not a tensor"),
        ({"../a": torch.zeros(2)}, "refused tensor name '../a'"),
        ({3: torch.zeros(2)}, "refused tensor name 3"),
        ({"a": torch.zeros(2).to_sparse()}, "tensor a: torch.float32, torch.sparse_coo on cpu"),
        ({"a": torch.zeros(2, dtype=torch.complex64)}, "tensor a: torch.complex64"),
        ({"a": torch.zeros(1).expand(10**12)}, "tensor a: shape .* is more than the file holds"),
        ([torch.zeros(2)], "should hold names and tensors, not list"),
        ({}, "should hold names and tensors, not dict"),
    ],
)
def test_what_is_not_a_named_tensor_is_refused_by_name(tmp_path, state, reason):
    torch.save(state, tmp_path / "weights.bin")  # noqa: TID251
    with pytest.raises(CheckpointError, match=rf"weights\.bin: {reason}"):
        write_safetensors(tmp_path / "weights.bin", tmp_path / "model.safetensors", tied=True)
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize("content", [b"", b"junk junk", b"version https://git-lfs.github.com\n"])
def test_what_is_no_pickle_is_refused(tmp_path, content):
    (tmp_path / "weights.bin").write_bytes(content)
    with pytest.raises(CheckpointError, match="is not a pickle of tensors"):
        write_safetensors(tmp_path / "weights.bin", tmp_path / "model.safetensors", tied=True)


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda found: {**found, "c": found["a"]}, "disagree on c"),
        (lambda found: {"b": found["b"], "c": found["a"]}, "disagree on a, c"),
        (lambda found: {**found, "a": "../pytorch_model.bin"}, "refused shard name"),
        (lambda found: {**found, "a": "gone.bin"}, "gone.bin: is missing"),
        (lambda _: {}, "has no weight_map"),
    ],
)
def test_an_index_must_tell_the_truth(pickled, tmp_path, edit, reason):
    source = pickled({"a": torch.zeros(2)}, {"b": torch.ones(2)}, edit=edit)
    with pytest.raises(CheckpointError, match=reason):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_there_must_be_one_pickled_checkpoint(pickled, pico, tmp_path):
    with pytest.raises(CheckpointError, match=r"has neither .* nothing to convert"):
        convert(pico("llama"), tmp_path / "out")
    source = pickled({"a": torch.zeros(2)})
    (source / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match="remove one"):
        convert(source, tmp_path / "out")


def test_an_unsafe_torch_is_refused_before_anything_is_read(monkeypatch, tmp_path):
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.9.1"))
    with pytest.raises(CheckpointError, match=r"torch 2\.9\.1 .*CVE-2026-24747"):
        convert(tmp_path / "nowhere", tmp_path / "out")


def test_a_torch_py_in_the_current_folder_is_not_imported(pickled, tmp_path, monkeypatch):
    source = pickled({"a": torch.zeros(2)})
    (source / "torch.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(source)
    convert(source, tmp_path / "out")
    assert not (tmp_path / "out" / "torch.py").exists()


def test_an_output_is_never_overwritten_and_a_full_disk_says_so(pickled, tmp_path, monkeypatch):
    source = pickled({"a": torch.zeros(2)})
    with pytest.raises(OutputExistsError, match="lies in the input"):
        convert(source, source / "out")
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=0))
    with pytest.raises(StorageError, match="GB are free"):
        convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_is_converted_with_its_config(tmp_path, tensors, pickled):
    path = pickled(tensors)
    (path / "pytorch_model.bin").rename(path / "adapter_model.bin")
    (path / "config.json").rename(path / "adapter_config.json")
    (path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    convert(path, tmp_path / "out")
    found = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
    assert (tmp_path / "out" / "adapter_config.json").read_text() == '{"peft_type": "LORA"}'
