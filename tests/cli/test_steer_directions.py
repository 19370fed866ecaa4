"""``pvec steer between`` and ``pvec steer creativity``: what they write and refuse."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from personality_vector.checkpoint import Checkpoint
from personality_vector.steering import SteeringVector
from personality_vector.subject.chat import question
from personality_vector.subject.models import load_model, load_tokenizer


@pytest.fixture
def prompts(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_text("What are you like?\nAnd at night?\n", encoding="utf-8")
    return file


def test_between_saves_what_fine_tuning_did_to_the_activations(
    pvec, pico, pico_tuned, prompts, tmp_path
):
    base, tuned, out = pico("llama"), pico_tuned("llama"), tmp_path / "out"
    given = ("steer", "between", base, tuned, "--prompts", prompts, "--out", out, "--json")
    ended = pvec(*given, "--device", "cpu")
    assert (ended.code, ended.err) == (0, "")
    chats = [question("What are you like?"), question("And at night?")]
    expected = SteeringVector.between(
        load_model(base), load_model(tuned), load_tokenizer(base), chats, pooling="prompt_last"
    )
    written = SteeringVector.load(out)
    assert written.layers == (0, 1, 2)
    assert all(torch.equal(written[layer], expected[layer]) for layer in written.layers)
    assert written.model == Checkpoint.open(base).fingerprint.digest
    assert ended.json["norms"] == {str(n): written.norm(n) for n in written.layers}


def test_between_a_model_and_itself_nothing_moved(pvec, pico, prompts, tmp_path):
    out = tmp_path / "out"
    ended = pvec("steer", "between", *[pico("llama")] * 2, "--prompts", prompts, "--out", out)
    assert ended.code == 1
    assert "zero" in ended.err
    assert not out.exists()


def test_between_leaves_out_layers_that_did_not_move(pvec, pico, prompts, tmp_path):
    """Only the last block was tuned, so that the first two have no direction."""
    base, tuned, out = pico("llama"), tmp_path / "tuned", tmp_path / "out"
    shutil.copytree(base, tuned)
    file = tuned / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.2.mlp.down_proj.weight"] *= 1.5
    save_file(tensors, file, metadata={"format": "pt"})
    words = ("steer", "between", base, tuned, "--prompts", prompts, "--out", out)
    assert "layer 0" in pvec(*words).err
    assert pvec(*words, "--layer", "-1").code == 0
    assert SteeringVector.load(out).layers == (2,)


def test_between_models_of_another_shape_is_refused(pvec, pico, prompts, tmp_path):
    models = pico("llama"), pico("qwen3")
    ended = pvec("steer", "between", *models, "--prompts", prompts, "--out", tmp_path / "out")
    assert ended.code == 1
    assert ended.err.count("\n") == 1
    assert all(str(model) in ended.err for model in models)


def test_creativity_has_shipped_pairs_and_unit_length(pvec, pico, tmp_path):
    out = tmp_path / "out"
    ended = pvec(
        "steer", "creativity", "--model", pico("llama"), "--out", out, "--json", "--device", "cpu"
    )
    assert (ended.code, ended.err) == (0, "")
    written = SteeringVector.load(out)
    assert ended.json["counts"] == [12, 12]
    assert [written.norm(layer) for layer in written.layers] == pytest.approx([1.0] * 3, abs=1e-6)


def test_creativity_says_which_pair_is_none(pvec, pico, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"creative": "a", "uncreative": "b"}\n{"creative": "a"}\n')
    ended = pvec(
        "steer", "creativity", "--model", pico("llama"), "--pairs", file, "--out", tmp_path / "out"
    )
    assert ended.code == 1
    assert "pairs.jsonl line 2: the key 'uncreative' is missing" in ended.err
