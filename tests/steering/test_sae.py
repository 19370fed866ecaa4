"""Features of a sparse autoencoder: a planted one is found, written, and moves what was planted."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from personality_vector.checkpoint import Checkpoint
from personality_vector.cli.main import run
from personality_vector.errors import CheckpointError, NonFiniteError, TensorMismatchError
from personality_vector.numeric.random import generator_for
from personality_vector.steering import SteeringVector, sae, steered
from personality_vector.steering.activations import Reader
from personality_vector.steering.sae import Dictionary
from personality_vector.subject.chat import question
from personality_vector.traits import Pole

FEATURES, HIDDEN, PLANTED, MIRROR, DEAD, LAYER = 200, 48, 137, 20, 5, 1


@pytest.fixture(scope="module")
def decoder():
    """Return directions of features: one is planted, one is nearly its mirror, one is dead."""
    rows = torch.randn(FEATURES, HIDDEN, generator=generator_for(0, "decoder"))
    rows[MIRROR] = -0.5 * rows[PLANTED] + 0.2 * rows[MIRROR]
    rows[DEAD] = 0.0
    return rows


@pytest.fixture
def vector(decoder, pico, tmp_path):
    """Return a saved steering vector of pico that was made from the planted feature."""
    noise = 0.02 * torch.randn(HIDDEN, generator=generator_for(0, "noise"))
    model = Checkpoint.open(pico("llama")).fingerprint.digest
    directions = {LAYER: 3.0 * decoder[PLANTED] + noise, 2: decoder[1]}
    found = SteeringVector(directions, model, Pole("extraversion", "high"), "v", "", (1, 1))
    found.save(tmp_path / "vector")
    return tmp_path / "vector"


@pytest.fixture
def saved(decoder, tmp_path):
    """Return ``saved(**tensors)``: a file in the folder of SAELens, by default ``W_dec`` alone."""

    def save(hook="blocks.1.hook_resid_post", **tensors):
        folder = tmp_path / "sae"
        folder.mkdir(exist_ok=True)
        save_file(tensors or {"W_dec": decoder}, folder / "sae_weights.safetensors")
        (folder / "cfg.json").write_text(json.dumps({"metadata": {"hook_name": hook}}))
        return folder / "sae_weights.safetensors"

    return save


def test_the_planted_feature_is_first_and_cosines_are_those_of_the_formula(saved, vector, decoder):
    direction = SteeringVector.load(vector)[LAYER]
    found = Dictionary.open(saved()).nearest(direction, FEATURES + 10)
    assert [one.number for one in found[:2]] == [PLANTED, MIRROR]
    assert found[0].cosine > 0.99
    assert found[1].cosine < -0.9
    assert {one.number for one in found} == set(range(FEATURES)) - {DEAD}
    magnitudes = [abs(one.cosine) for one in found]
    assert magnitudes == sorted(magnitudes, reverse=True)
    for one in found:
        row = decoder[one.number]
        assert one.cosine == pytest.approx(
            float(torch.cosine_similarity(row, direction, 0)), abs=1e-6
        )
        assert one.norm == pytest.approx(float(row.norm()), rel=1e-6)


@pytest.mark.parametrize("part", [1, 7 * HIDDEN, 1 << 22])
def test_the_layout_and_the_size_of_a_part_change_nothing(
    saved, vector, decoder, monkeypatch, part
):
    direction = SteeringVector.load(vector)[LAYER]
    expected = Dictionary.open(saved()).nearest(direction, 9)
    monkeypatch.setattr(sae, "_PART", part)
    turned = Dictionary.open(saved(**{"decoder.weight": decoder.T.contiguous()}))
    assert (turned.features, turned.hidden) == (FEATURES, HIDDEN)
    found = turned.nearest(direction, 9)
    assert [one.number for one in found] == [one.number for one in expected]
    assert [one.cosine for one in found] == pytest.approx([one.cosine for one in expected])
    assert torch.equal(turned.directions([PLANTED, 0]), decoder[[PLANTED, 0]])


@pytest.mark.parametrize(
    ("hook", "layer"),
    [
        ("blocks.8.hook_resid_post", 8),
        ("blocks.8.hook_resid_pre", 7),
        ("blocks.0.hook_resid_pre", None),
        ("blocks.8.hook_mlp_out", None),
        (None, None),
    ],
)
def test_the_layer_is_the_block_whose_output_it_was_trained_on(saved, hook, layer):
    assert Dictionary.open(saved(hook)).layer == layer
    beside = saved(hook).with_name("cfg.json")
    beside.write_text(json.dumps({"hook_name": hook}))
    assert Dictionary.open(beside.parent).layer == layer
    beside.unlink()
    assert Dictionary.open(beside.parent).layer is None


def test_steering_with_the_written_vector_moves_what_was_planted(
    saved, vector, decoder, loaded, pico, tmp_path, capsys
):
    words = ["--weights", str(saved()), "--top", "2", "--model", str(pico("llama"))]
    assert run(["steer", "sae", str(vector), *words, "--out", str(tmp_path / "out")]) == 0
    assert str(PLANTED) in capsys.readouterr().out
    written = SteeringVector.load(tmp_path / "out" / f"feature-{PLANTED}")
    length = SteeringVector.load(vector).norm(LAYER)
    assert written.layers == (LAYER,)
    assert written.norm(LAYER) == pytest.approx(length, rel=1e-6)
    mirror = SteeringVector.load(tmp_path / "out" / f"feature-{MIRROR}")
    assert mirror[LAYER] @ decoder[MIRROR] > 0, "a positive coefficient adds the feature itself"
    model, tokenizer = loaded()
    unit = (decoder[PLANTED] / decoder[PLANTED].norm()).double()

    def projected(coefficient):
        chats = [question("Who are you?")]
        with steered(model, {LAYER: written[LAYER]}, coefficient):
            return float(
                Reader(model, tokenizer, [LAYER], "prompt_last", 1).mean(chats)[LAYER].double()
                @ unit
            )

    for coefficient in (-1.0, 0.5):
        moved = projected(coefficient) - projected(0.0)
        assert moved == pytest.approx(coefficient * length, rel=1e-4)


def test_the_sweep_steers_with_the_vector_and_each_feature(saved, vector, pico, tmp_path, capsys):
    words = ["--weights", str(saved()), "--top", "2", "--model", str(pico("llama"))]
    assert run(["steer", "sae", str(vector), *words, "--out", str(tmp_path / "out")]) == 0
    recipe = yaml.safe_load((tmp_path / "out" / "sweep.yaml").read_text())
    assert recipe["measures"] == [{"likelihood": {"traits": ["extraversion"]}}, "divergence"]
    (tmp_path / "out").rename(tmp_path / "moved")
    capsys.readouterr()
    few = ["--set", "strengths=[1.0]", "--set", "measures=[{likelihood: {limit: 2}}]"]
    swept = [str(tmp_path / "moved" / "sweep.yaml"), "--out", str(tmp_path / "run"), "--json"]
    assert run(["sweep", *swept, *few, "--set", "device=cpu"]) == 0
    rows = json.loads(capsys.readouterr().out)["dose and response"]
    expected = {"v", f"feature-{PLANTED}", f"feature-{MIRROR}"}
    assert {row["intervention"] for row in rows} == expected


@pytest.mark.parametrize(
    ("tensors", "kind", "match"),
    [
        ({"W_dec": torch.ones(9, 32)}, TensorMismatchError, r"decodes to 32 numbers, but the vec"),
        ({"W_enc": torch.ones(48, 9)}, CheckpointError, "has neither W_dec nor decoder.weight"),
        ({"W_dec": torch.ones(48)}, CheckpointError, "W_dec should be a matrix of real numbers"),
        (
            {"W_dec": torch.ones(9, 48, dtype=torch.int8)},
            *(CheckpointError, "W_dec should be a matrix of real numbers, but is torch.int8"),
        ),
    ],
)
def test_what_is_no_dictionary_of_the_model_is_refused(saved, vector, tensors, kind, match):
    with pytest.raises(kind, match=match):
        Dictionary.open(saved(**tensors)).nearest(SteeringVector.load(vector)[LAYER], 3)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_broken_feature_is_refused_by_its_number(saved, vector, decoder, bad):
    broken = decoder.clone()
    broken[77, 3] = bad
    with pytest.raises(NonFiniteError, match=r"1 features of W_dec hold NaN .* the first is 77"):
        Dictionary.open(saved(W_dec=broken)).nearest(SteeringVector.load(vector)[LAYER], 3)


@pytest.mark.parametrize(
    ("words", "hook", "message"),
    [
        (["--layer", "0"], "blocks.1.hook_resid_post", "v: has no direction for layer 0, only for"),
        ([], "blocks.1.hook_resid_pre", "v: has no direction for layer 0, only for [1, 2]"),
        ([], "blocks.1.hook_mlp_out", "which is not the output of a block"),
        (["--out", "out"], "blocks.1.hook_resid_post", "give both or none"),
    ],
)
def test_a_refusal_is_one_sentence(saved, vector, capsys, words, hook, message):
    assert run(["steer", "sae", str(vector), "--weights", str(saved(hook)), *words]) == 1
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_a_vector_of_another_model_writes_nothing(saved, vector, pico, tmp_path, capsys):
    words = ["--weights", str(saved()), "--model", str(pico("qwen2"))]
    assert run(["steer", "sae", str(vector), *words, "--out", str(tmp_path / "out")]) == 1
    assert "was extracted from model" in capsys.readouterr().err
    assert not Path(tmp_path / "out").exists()
