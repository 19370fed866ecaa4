"""``pvec convert``: from pickled weights to a checkpoint that every other verb takes."""

import shutil

import torch

from personality_vector.checkpoint import Checkpoint


def pickled(source, path):
    """Write the checkpoint ``source`` at ``path`` with its weights pickled."""
    checkpoint = Checkpoint.open(source)
    shutil.copytree(source, path)
    (path / "model.safetensors").unlink()
    state = {name: checkpoint[name] for name in checkpoint.names}
    torch.save(state, path / "pytorch_model.bin")  # noqa: TID251  (a pickle is what is tested)
    return path


def test_pickled_weights_become_the_same_checkpoint(pvec, pico, tmp_path):
    source = pickled(pico("llama"), tmp_path / "pickled")
    ended = pvec("convert", source, "--out", tmp_path / "out", "--json", "--quiet")
    assert (ended.code, ended.err) == (0, "")
    original, converted = Checkpoint.open(pico("llama")), Checkpoint.open(tmp_path / "out")
    assert ended.json["weights"] == original.fingerprint.digest
    assert converted.fingerprint == original.fingerprint
    kept = {file.name for file in original.side_files()}
    assert {file.name for file in converted.side_files()} == kept
    assert pvec("push", tmp_path / "out", "me/converted", "--dry-run").code == 0


def test_the_refusal_of_a_pickle_names_the_command_that_converts_it(pvec, pico, tmp_path):
    source = pickled(pico("llama"), tmp_path / "pickled")
    ended = pvec("show", source)
    assert ended.code == 1
    assert f"`pvec convert {source} --out DIR`" in ended.err


def test_a_directory_without_pickles_is_refused_in_one_sentence(pvec, pico, tmp_path):
    ended = pvec("convert", pico("llama"), "--out", tmp_path / "out")
    assert ended.code == 1
    assert "nothing to convert" in ended.err
    assert len(ended.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()
