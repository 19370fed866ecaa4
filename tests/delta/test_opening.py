import logging

import pytest
import torch
from safetensors.torch import load_file, save_file

from personality_vector.checkpoint import Checkpoint
from personality_vector.delta import open_delta
from personality_vector.delta.provenance import require_not_swapped
from personality_vector.delta.sources import Difference
from personality_vector.errors import BaseMismatchError
from personality_vector.manifest import write_manifest


def changed(source, target, change):
    """Write a copy of a checkpoint whose every tensor went through ``change``."""
    target.mkdir()
    for file in source.iterdir():
        if file.suffix != ".safetensors":
            (target / file.name).write_bytes(file.read_bytes())
    tensors = load_file(source / "model.safetensors")
    save_file({name: change(t) for name, t in tensors.items()}, target / "model.safetensors")
    return target


@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_an_unrelated_model_of_the_same_shapes_is_refused(pico, tmp_path, family):
    def shuffled(tensor):
        order = torch.randperm(tensor.numel(), generator=torch.Generator().manual_seed(1))
        return tensor.reshape(-1)[order].reshape(tensor.shape).clone()

    stranger = changed(pico(family), tmp_path / "stranger", shuffled)
    with pytest.raises(BaseMismatchError, match=r"stranger: is not a fine-tune of .* 1\.4 times"):
        open_delta(stranger, Checkpoint.open(pico(family)))


def test_a_large_fine_tune_is_still_one(pico, tmp_path):
    tuned = changed(pico("llama"), tmp_path / "tuned", lambda tensor: 1.9 * tensor)
    assert open_delta(tuned, Checkpoint.open(pico("llama"))).norm() > 0


def test_a_fine_tune_of_ours_knows_its_base_and_its_pole(pico, tmp_path):
    base = Checkpoint.open(pico("llama"))
    ours = changed(pico("llama"), tmp_path / "ours", lambda tensor: tensor + 0.01)
    record = {"base": {"fingerprint": base.fingerprint.digest}, "pole": "openness:low"}
    write_manifest(ours, "train", record)
    assert str(open_delta(ours, base).pole) == "openness:low"
    other = changed(pico("llama"), tmp_path / "other", lambda tensor: tensor - 0.01)
    with pytest.raises(BaseMismatchError, match="ours: was trained on base"):
        open_delta(ours, Checkpoint.open(other))


def test_what_was_trained_with_an_earlier_version_is_compared_by_its_sample(pico, tmp_path, caplog):
    base = Checkpoint.open(pico("llama"))
    ours = changed(pico("llama"), tmp_path / "ours", lambda tensor: tensor + 0.01)
    sample = base.digest_like("0" * 32)
    write_manifest(ours, "train", {"base": {"fingerprint": sample}, "pole": "openness:low"})
    with caplog.at_level(logging.WARNING):
        assert open_delta(ours, base).norm() > 0
    assert "ours: was trained by an earlier version; of the model" in caplog.text
    with pytest.raises(BaseMismatchError, match=r"ours: was trained on .* the base comes first"):
        require_not_swapped(Difference(Checkpoint.open(ours), base))
    other = changed(pico("llama"), tmp_path / "other", lambda tensor: tensor - 0.01)
    with pytest.raises(BaseMismatchError, match="was trained by an earlier version on base"):
        open_delta(ours, Checkpoint.open(other))
