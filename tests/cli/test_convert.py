"""``pvec convert``: from pickles and GGUF files to what every other verb takes."""

import json
import re
import shutil
from collections import namedtuple

import pytest
import torch

from personality_vector.checkpoint import Checkpoint
from tests.gguf_models import permuted, write_gguf, write_lora


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


def test_a_gguf_file_becomes_a_checkpoint_for_every_other_verb(pvec, pico, pico_tuned, tmp_path):
    file, out = write_gguf(pico("llama"), tmp_path / "m.gguf"), tmp_path / "out"
    for words in (["show", file], ["merge", "--base", file, "--term", f"{out}=1", "--out", out]):
        ended = pvec(*words)
        assert ended.code == 1
        assert f"`pvec convert {file} --out DIR`" in ended.err
    (tmp_path / "folder").mkdir()
    inside = shutil.copy(file, tmp_path / "folder" / "m.gguf")
    assert f"`pvec convert {inside} --out DIR`" in pvec("show", tmp_path / "folder").err
    ended = pvec("convert", file, "--out", out, "--json", "--quiet")
    assert (ended.code, ended.err) == (0, "")
    assert ended.json["weights"] == Checkpoint.open(pico("llama")).fingerprint.digest
    assert pvec("verify", out).code == 0
    merged = tmp_path / "merged"
    tuned = pico_tuned("llama")
    assert pvec("merge", "--base", out, "--term", f"{tuned}=1", "--out", merged).code == 0
    assert Checkpoint.open(merged).fingerprint == Checkpoint.open(tuned).fingerprint


def test_an_adapter_of_llama_cpp_becomes_one_of_peft(pvec, pico, tmp_path):
    kept = {}
    base = Checkpoint.open(pico("llama"))
    file = write_lora(base.path, tmp_path / "lora.gguf", alpha=6.0, change=kept.update)
    ended = pvec("convert", file, "--out", tmp_path / "adapter")
    assert ended.code == 1
    assert "name the model that it adapts with --base" in ended.err
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    for words in (
        ["convert", file, "--base", base.path, "--out", adapter],
        ["verify", adapter],
        ["merge", "--base", base.path, "--term", f"{adapter}=1", "--out", merged],
    ):
        ended = pvec(*words, "--quiet")
        assert ended.code == 0, ended.err
    merged = Checkpoint.open(merged)
    places = {"attn_q": "self_attn.q_proj", "ffn_down": "mlp.down_proj"}
    for short, place in places.items():
        name, stem = f"model.layers.1.{place}.weight", f"blk.1.{short}.weight"
        delta = 3 * kept[f"{stem}.lora_b"] @ kept[f"{stem}.lora_a"]
        change = (merged[name] - base[name]).numpy()
        change = permuted(change, 4) if short == "attn_q" else change
        assert abs(change - delta).max() < 1e-5
    unchanged = "model.layers.1.mlp.up_proj.weight"
    assert torch.equal(merged[unchanged], base[unchanged])
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, 6.0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda factors: factors.pop("blk.0.attn_q.weight.lora_b"), "has one factor of"),
        (lambda f: f.update({"blk.9.attn_q.weight.lora_a": f.popitem()[1]}), "blk.9.attn_q.weight"),
        (lambda f: f.update({"blk.0.ffn_up.weight": f.popitem()[1]}), "is not a factor"),
        (
            lambda f: f.update({"blk.0.attn_q.weight.lora_a": f["blk.0.ffn_down.weight.lora_a"]}),
            r"do not make \[48, 48\]",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(pvec, pico, tmp_path, change, said):
    file = write_lora(pico("llama"), tmp_path / "lora.gguf", change=change)
    ended = pvec("convert", file, "--base", pico("llama"), "--out", tmp_path / "adapter")
    assert ended.code == 1
    assert re.search(said, ended.err), ended.err
    assert len(ended.err.splitlines()) == 1
    assert not (tmp_path / "adapter").exists()


def test_an_alpha_of_0_is_no_scaling_whatever_the_ranks(pvec, pico, tmp_path):
    base, kept = Checkpoint.open(pico("llama")), {}

    def widen(factors):
        for half, axis in (("a", 0), ("b", 1)):
            name = f"blk.0.ffn_down.weight.lora_{half}"
            factors[name] = factors[name].repeat(2, axis=axis)
        kept.update(factors)

    file = write_lora(base.path, tmp_path / "lora.gguf", alpha=0.0, change=widen)
    pvec("convert", file, "--base", base.path, "--out", tmp_path / "adapter")
    terms = ["--base", base.path, "--term", f"{tmp_path / 'adapter'}=1"]
    ended = pvec("merge", *terms, "--out", tmp_path / "merged", "--quiet")
    assert ended.code == 0, ended.err
    for block in (0, 1):
        name, stem = f"model.layers.{block}.mlp.down_proj.weight", f"blk.{block}.ffn_down.weight"
        change = Checkpoint.open(tmp_path / "merged")[name] - base[name]
        wanted = kept[f"{stem}.lora_b"] @ kept[f"{stem}.lora_a"]
        assert abs(change.numpy() - wanted).max() < 1e-5


def test_what_cannot_be_converted_is_said_in_one_sentence(pvec, pico, tmp_path, monkeypatch):
    file, out = write_gguf(pico("llama"), tmp_path / "m.gguf"), tmp_path / "out"
    other = tmp_path / "notes.txt"
    other.write_text("no model")
    vector = tmp_path / "vector.gguf"
    file_of_vector(vector)
    for words, said in (
        ([tmp_path / "none.gguf"], "none.gguf: no such file"),
        ([other], "notes.txt: is not a GGUF file"),
        ([vector], "is a control vector of llama.cpp, not a model"),
        ([file, "--base", pico("llama")], "is a model, not an adapter"),
        ([pico("llama"), "--dtype", "bfloat16"], "--dtype and --base are for GGUF files"),
        ([tmp_path], "nothing to convert; give its file m.gguf itself"),
    ):
        ended = pvec("convert", *words, "--out", out)
        assert ended.code == 1
        assert said in ended.err
        assert len(ended.err.splitlines()) == 1
        assert not out.exists()
    usage = namedtuple("usage", "free")(1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    ended = pvec("convert", file, "--out", out)
    assert ended.code == 4
    assert "1.00 kB are free there" in ended.err
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "m.gguf",
        "notes.txt",
        "vector.gguf",
    ]


def file_of_vector(file):
    from personality_vector.steering import SteeringVector
    from personality_vector.steering.storage import export_gguf

    vector = SteeringVector({1: torch.ones(8)}, "", None, "warm", "response_mean", (1, 1))
    export_gguf(vector, file)
