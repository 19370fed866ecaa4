"""``pvec steer between``, ``creativity`` and its helpers: what they write and refuse."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from personality_vector.checkpoint import Checkpoint
from personality_vector.data.creativity import read_creativity_pairs
from personality_vector.steering import SteeringVector
from personality_vector.subject.chat import question
from personality_vector.subject.models import load_model, load_tokenizer
from tests.fake_endpoint import said, serving


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
    assert ended.json["counts"] == [31, 31]
    assert [written.norm(layer) for layer in written.layers] == pytest.approx([1.0] * 3, abs=1e-6)


def test_creativity_says_which_pair_is_none(pvec, pico, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text('{"creative": "a", "uncreative": "b"}\n{"creative": "a"}\n')
    ended = pvec(
        "steer", "creativity", "--model", pico("llama"), "--pairs", file, "--out", tmp_path / "out"
    )
    assert ended.code == 1
    assert "pairs.jsonl line 2: the key 'uncreative' is missing" in ended.err


def test_the_layer_of_creativity_is_chosen_by_replies_and_printed(pvec, pico, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    rows = [
        {"creative": f"Dream of {n}", "uncreative": f"Count to {n}", "part": part}
        for n, part in enumerate(["train", "validation", "test"] * 2)
    ]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, out = ("--model", pico("llama"), "--device", "cpu"), tmp_path / "v"
    assert pvec("steer", "creativity", *model, "--pairs", pairs, "--out", out).code == 0
    words = ("steer", "creativity-layer", out, *model, "--pairs", pairs, "--max-new-tokens", 4)
    ended = pvec(*words, "--json")
    assert (ended.code, ended.err) == (0, "")
    assert [row["layer"] for row in ended.json["layers"]] == [0, 1]
    able = [row for row in ended.json["layers"] if row["slope"] > 0]
    best = max(able, key=lambda row: row["d_prime"])
    assert ended.json["layer"] == best["layer"]
    assert 0 <= ended.json["test"]["auc_low"] <= ended.json["test"]["auc_high"] <= 1
    assert f"layers: [{best['layer']}], strengths: [3.0]}}" in pvec(*words).out


def test_too_few_pairs_are_refused_unless_all_of_them_are_learned_from(pvec, pico, tmp_path):
    pairs, out = tmp_path / "pairs.jsonl", tmp_path / "v"
    pairs.write_text('{"creative": "a", "uncreative": "b"}\n{"creative": "c", "uncreative": "d"}\n')
    words = ("steer", "creativity", "--model", pico("llama"), "--pairs", pairs, "--out", out)
    ended = pvec(*words, "--device", "cpu")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "and each part needs 2" in ended.err
    assert not out.exists()
    assert pvec(*words, "--device", "cpu", "--part", "all").code == 0
    assert SteeringVector.load(out).counts == (2, 2)


def test_twins_are_written_by_a_server_into_a_file_of_pairs(pvec, tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "pairs.jsonl"
    prompts.write_text("Dream of the sea.\nSing of ash.\n", encoding="utf-8")
    words = ("steer", "write-twins", prompts, "--out", out, "--model", "writer", "--endpoint")

    def twin(body):
        text = body["messages"][0]["content"]
        return said(json.dumps({"prompt": "Describe the sea." if "sea" in text else " "}))

    with serving(twin) as fake:
        ended = pvec(*words, fake.base_url)
        assert ended.code == 0
        assert "1 of 2 prompts with a twin\nleft out 'Sing of ash.': it is empty" in ended.out
        (pair,) = read_creativity_pairs(out)
        assert (pair.creative, pair.uncreative) == ("Dream of the sea.", "Describe the sea.")
        assert "exists; choose another --out" in pvec(*words, fake.base_url).err
        assert pvec(*words, fake.base_url, "--force", "--json").json["pairs"] == 1
        out.write_text("my notes")
        ended = pvec(*words, fake.base_url, "--force")
    assert (ended.code, out.read_text()) == (1, "my notes")
    assert "does not hold pairs of prompts, so it is never replaced" in ended.err


def test_nothing_is_written_if_no_twin_is_usable(pvec, tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "pairs.jsonl"
    prompts.write_text("Dream.\n")
    words = ("steer", "write-twins", prompts, "--out", out)
    with serving(lambda _: said("DREAM.")) as fake:
        ended = pvec(*words, "--model", "writer", "--endpoint", fake.base_url)
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "no twin is usable, that of 'Dream.' because it is the prompt itself" in ended.err
    assert "either --model" in pvec(*words).err
    assert not out.exists()
