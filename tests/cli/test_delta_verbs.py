"""``pvec diff``, ``pvec show`` and ``pvec similarity``: every storage, every view of a delta."""

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from personality_vector.checkpoint import Checkpoint
from personality_vector.delta import Delta, open_delta, read_record
from personality_vector.delta.layers import layer_of, module_of
from personality_vector.delta.similarity import similarity
from personality_vector.manifest import write_manifest
from personality_vector.steering import SteeringVector
from personality_vector.subject.models import load_model

EVERY_STORAGE = pytest.mark.parametrize(
    ("words", "storage"),
    [
        ([], "float32"),
        (["--as", "float32"], "float32"),
        (["--dtype", "bfloat16"], "bfloat16"),
        (["--as", "bfloat16"], "bfloat16"),
        (["--low-rank", "4"], "low-rank"),
        (["--as", "reference"], "reference"),
    ],
    ids=" ".join,
)


@pytest.fixture
def vectors(tmp_path):
    """Three saved steering vectors of one model, two layers each."""
    rows = {
        "a": {0: [1.0, 2.0, 0.0], 3: [0.0, 1.0, 1.0]},
        "b": {0: [0.0, 1.0, 1.0], 3: [0.0, -1.0, 1.0]},
        "c": {0: [1.0, 0.0, 0.0], 3: [2.0, 1.0, 1.0]},
    }
    return [
        SteeringVector(
            {layer: torch.tensor(row) for layer, row in layers.items()},
            "f" * 32,
            None,
            label,
            "",
            (1, 1),
        ).save(tmp_path / label)
        for label, layers in rows.items()
    ]


# diff


@pytest.mark.parametrize("words", [[], ["--as", "bfloat16"], ["--low-rank", "4"]], ids=" ".join)
def test_half_the_difference_of_two_fine_tunes_is_saved_as_a_delta(
    pvec, lab, pico_tuned, tmp_path, words
):
    high, low = lab.tuned, str(pico_tuned("llama", seed=1))
    ended = pvec(
        "diff", lab.base, high, "--against", low, *words, "--out", tmp_path / "v", "--json"
    )
    assert ended.code == 0, ended.err
    saved = Delta.load(tmp_path / "v")
    one, two = (Delta.between(lab.base, tuned) for tuned in (high, low))
    assert saved.halves == (one.identity, two.identity)
    assert saved.label == f"{one.label} against {two.label}"
    half = 0.5 * (one - two)
    assert saved.cosine(half) ** 2 == pytest.approx(
        read_record(tmp_path / "v").total.kept, abs=1e-4
    )
    other = pvec("diff", lab.base, high, "--against", lab.base, "--out", tmp_path / "w", "--json")
    assert Delta.load(tmp_path / "w").norm() == pytest.approx(one.norm() / 2), other.err


def test_a_difference_without_anything_left_is_refused(pvec, lab, tmp_path):
    ended = pvec("diff", lab.base, lab.tuned, "--against", lab.tuned, "--out", tmp_path / "v")
    assert ended.code == 1
    assert ended.err.count("\n") == 1
    assert not (tmp_path / "v").exists()


@EVERY_STORAGE
def test_diff_saves_in_every_storage_and_says_what_it_lost(pvec, lab, tmp_path, words, storage):
    out = tmp_path / "v"
    ended = pvec("diff", lab.base, lab.tuned, *words, "--out", out, "--json")
    assert (ended.code, ended.err) == (0, "")
    expected = Delta.between(lab.base, lab.tuned)
    loaded = Delta.load(out)
    assert ended.json["storage"] == storage
    assert ended.json["norm"] == pytest.approx(expected.norm())
    loss = (loaded - expected).norm() / expected.norm()
    assert ended.json["loss"] == pytest.approx(loss, rel=1e-6, abs=1e-12)
    assert ("kept" in ended.json) == (storage == "low-rank")
    said = pvec("diff", lab.base, lab.tuned, *words, "--out", out, "--force").out
    assert (f"lost {loss:.2%}" in said) == (storage == "bfloat16")
    assert (f"rank 4 keeps {1 - loss**2:.1%}" in said) == (storage == "low-rank")


@pytest.mark.parametrize("storage", ["float32", "reference"])
def test_the_whole_of_an_exact_delta_is_the_fine_tune(pvec, lab, tmp_path, storage):
    words = ["--as", storage, "--out", tmp_path / "v"]
    assert pvec("diff", lab.base, lab.tuned, *words).code == 0
    term = ["--term", f"{tmp_path / 'v'}=1"]
    assert pvec("merge", "--base", lab.base, *term, "--out", tmp_path / "out").code == 0
    merged, tuned = Checkpoint.open(tmp_path / "out"), Checkpoint.open(lab.tuned)
    for name in tuned.names:
        assert torch.equal(*(c[name].view(torch.uint8) for c in (merged, tuned)))


def test_diff_keeps_an_adapter_factored(pvec, lab, tmp_path, lora):
    words = ["diff", lab.base, lora, "--out", tmp_path / "v"]
    assert pvec(*words, "--as", "lora").code == 0
    loaded, expected = Delta.load(tmp_path / "v"), Delta.from_lora(lora, lab.base)
    assert loaded.identity == expected.identity
    assert all(torch.equal(loaded[name], expected[name]) for name in expected.names)
    merged = [
        pvec("merge", "--base", lab.base, "--term", f"{term}=0.5", "--out", tmp_path / str(number))
        for number, term in enumerate((tmp_path / "v", lora))
    ]
    assert [ended.code for ended in merged] == [0, 0]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("0", "1")]
    assert weights[0] == weights[1]


@pytest.fixture
def lora(tmp_path, lab):
    """A LoRA adapter as PEFT writes it, for one module."""
    from safetensors.torch import save_file

    base = Checkpoint.open(lab.base)
    module = "model.layers.1.mlp.up_proj"
    rows, columns = base.entries[f"{module}.weight"].shape
    path = tmp_path / "lora"
    path.mkdir()
    generator = torch.Generator().manual_seed(0)
    factors = {"A": torch.randn(2, columns, generator=generator), "B": torch.ones(rows, 2)}
    save_file(
        {f"base_model.model.{module}.lora_{k}.weight": v for k, v in factors.items()},
        path / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "base_model_name_or_path": lab.base}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--as", "lora"], "is not made of LoRA adapters of nothing but factors; use --low-rank"),
        (["--as", "float32", "--low-rank", "2"], "give one of the two"),
    ],
)
def test_diff_refuses_what_cannot_be_stored_so(pvec, lab, tmp_path, words, said):
    ended = pvec("diff", lab.base, lab.tuned, *words, "--out", tmp_path / "v")
    assert ended.code == 1
    assert said in ended.err
    assert not (tmp_path / "v").exists()


@pytest.mark.parametrize("rank", ["0", "-1", "two"])
def test_a_rank_that_is_none_is_a_wrong_command_line(pvec, lab, tmp_path, rank):
    words = ["--low-rank", rank, "--out", tmp_path / "v"]
    assert pvec("diff", lab.base, lab.tuned, *words).code == 2


# show


@EVERY_STORAGE
def test_show_describes_a_delta_from_its_record_alone(pvec, lab, tmp_path, words, storage):
    out = tmp_path / "v"
    pole = ["--pole", "openness:low"]
    assert pvec("diff", lab.base, lab.tuned, *pole, *words, "--out", out).code == 0
    for file in out.glob("*.safetensors"):
        file.unlink()  # so that no tensor can be read
    shown, delta = pvec("show", out, "--json").json, Delta.between(lab.base, lab.tuned)
    assert (shown["kind"], shown["storage"]) == ("delta", storage)
    assert (shown["pole"], shown["identity"] == delta.identity) == (
        "openness:low",
        storage in ("float32", "reference"),
    )
    assert shown["base"]["digest"] == delta.base.digest
    assert set(shown["inputs"].values()) == {lab.base, lab.tuned}
    assert shown["norm"] == pytest.approx(delta.norm())
    assert shown["restores_the_fine_tune"] is (storage in ("float32", "reference"))
    for key, group in (("layers", layer_of), ("modules", module_of)):
        for name, total in shown[key].items():
            squares = sum(delta[n].double().square().sum() for n in delta.names if group(n) == name)
            assert total["norm"] == pytest.approx(float(squares) ** 0.5)
            assert ("kept" in total) == (storage == "low-rank")
    assert shown["by_tensor"].keys() == set(delta.names)


def test_show_counts_exact_zeros(pvec, lab, tmp_path):
    refused = pvec("diff", lab.base, lab.base, "--out", tmp_path / "none")
    assert refused.code == 1
    assert "is zero in every tensor" in refused.err
    Delta.between(lab.base, lab.base).save(tmp_path / "zero")
    shown = pvec("show", tmp_path / "zero", "--json").json
    assert (shown["zeros"], shown["norm"]) == (1.0, 0.0)


def test_show_prints_tables_of_layers_and_modules(pvec, lab):
    ended = pvec("show", lab.deltas[0])
    assert (ended.code, ended.err) == (0, "")
    for word in ("kind: delta", "norms of layers", "norms of modules", "layer 2", "final norm"):
        assert word in ended.out
    assert "self_attn.q_proj" in ended.out
    assert "model.layers" not in ended.out  # one row per tensor is for --json


def test_a_changed_delta_is_shown_and_not_read(pvec, lab, tmp_path):
    saved = shutil.copytree(lab.deltas[0], tmp_path / "v")
    file = saved / "delta.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert pvec("show", saved).code == 0
    ended = pvec("similarity", saved, lab.deltas[1])
    assert ended.code == 5
    assert ".weight: the content is not what was saved" in ended.err


def test_show_says_what_an_adapter_is(pvec, lab, lora):
    shown = pvec("show", lora, "--json").json
    assert shown["kind"] == "adapter"
    assert (shown["adapter"]["r"], shown["adapter"]["lora_alpha"]) == (2, 4)
    assert shown["adapter"]["base_model_name_or_path"] == lab.base


def test_show_says_which_layers_were_baked(pvec, tmp_path):
    write_manifest(tmp_path, "bake", {"layers": [1, 2], "route": "bias"})
    shown = pvec("show", tmp_path)
    assert shown.code == 0, shown.err
    assert "kind: bake" in shown.out
    assert "layers:\n- 1\n- 2\n" in shown.out


def test_show_says_what_a_steering_vector_is(pvec, vectors):
    shown = pvec("show", vectors[0], "--json").json
    assert (shown["kind"], shown["label"]) == ("steering_vector", "a")
    assert set(shown["norms"]) == {"0", "3"}


# similarity


@pytest.fixture
def three(lab, pico_tuned, tmp_path):
    """Three saved deltas; the third by reference."""
    third = Delta.between(lab.base, pico_tuned("llama", seed=2), label="seed 2")
    return [*lab.deltas, third.save(tmp_path / "third", storage="reference")]


@pytest.mark.parametrize("centred", [False, True])
def test_similarity_is_that_of_the_deltas_whole_and_by_layer(pvec, three, centred):
    words = ["--centred"] if centred else []
    found = pvec("similarity", *three, "--per-layer", "--json", *words).json
    expected = similarity([Delta.load(path) for path in three])
    assert found["labels"] == ["1 seed 0", "2 seed 1", "3 seed 2"]
    assert found["centred"] is centred
    assert found["cosine"] == expected.cosine(centred=centred).tolist()
    assert tuple(found["layers"]) == tuple(expected.grams)
    for layer, matrix in found["layers"].items():
        assert matrix == expected.cosine(layer, centred=centred).tolist()
    said = pvec("similarity", *three, "--per-layer", *words).out
    assert "cosine, centred" in said if centred else "cosine" in said
    assert all(word in said for word in ("2 seed 1", "layer 0", "1 and 3", "head"))


def test_similarity_of_steering_vectors_is_their_cosine(pvec, vectors):
    found = pvec("similarity", *vectors, "--per-layer", "--json").json
    one, two, _ = map(SteeringVector.load, vectors)
    assert found["labels"] == ["1 a", "2 b", "3 c"]
    for layer in (0, 3):
        cosine = found["layers"][f"layer {layer}"][0][1]
        assert cosine == pytest.approx(one.cosine(two, layer), abs=1e-12)
    flat = [torch.cat([v[layer] for layer in v.layers]).double() for v in (one, two)]
    expected = float(flat[0] @ flat[1] / flat[0].norm() / flat[1].norm())
    assert found["cosine"][0][1] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "e" * 32}, "only vectors of one model"),
        ({"directions": {0: torch.ones(3)}}, "has no direction for layer 3"),
        ({"directions": {0: torch.ones(3), 3: torch.ones(3), 4: torch.ones(3)}}, "for layer 4"),
    ],
    ids=["model", "fewer layers", "more layers"],
)
def test_steering_vectors_of_other_spaces_are_refused(pvec, vectors, tmp_path, change, said):
    from dataclasses import replace

    other = replace(SteeringVector.load(vectors[0]), **change).save(tmp_path / "other")
    ended = pvec("similarity", *vectors, other)
    assert ended.code == 1
    assert said in ended.err


def test_two_kinds_of_vectors_are_not_compared(pvec, lab, vectors):
    ended = pvec("similarity", lab.deltas[0], vectors[0])
    assert ended.code == 1
    assert "is a steering vector and" in ended.err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--centred"], "at least three vectors"),
        (["--figure", "x.pdf"], ".svg or .png"),
    ],
)
def test_similarity_refuses(pvec, lab, words, said):
    ended = pvec("similarity", *lab.deltas, *words)
    assert (ended.code, ended.out) == (1, "")
    assert said in ended.err


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_similarity_takes_what_merge_takes(pvec, lab, pico_tuned, tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    get_peft_model(load_model(Path(lab.base)), config).save_pretrained(tmp_path / "adapter")
    base, tuned = lab.base, pico_tuned("llama", seed=2)
    words = ["similarity", lab.deltas[0], tuned, tmp_path / "adapter", "--base", base]
    found = pvec(*words, "--json", "--per-layer")
    assert (found.code, found.err) == (0, "")
    assert found.json["labels"] == ["1 seed 0", f"2 {tuned.name}", "3 adapter"]
    deltas = [open_delta(path, Checkpoint.open(base)) for path in words[1:4]]
    expected = similarity(deltas)
    assert found.json["cosine"] == expected.cosine().tolist()
    assert found.json["cosine"][0][1] == pytest.approx(deltas[0].cosine(deltas[1]))
    assert set(found.json["layers"]) == set(expected.grams)


def test_a_checkpoint_without_its_base_is_refused(pvec, lab):
    ended = pvec("similarity", lab.deltas[0], lab.tuned)
    assert ended.code == 1
    assert f"{lab.tuned}: is not a saved delta; " in ended.err
    assert ended.err.rstrip().endswith("give the model that it was fine-tuned from as --base")


def test_a_delta_of_another_base_is_refused(pvec, lab, pico):
    ended = pvec("similarity", *lab.deltas, "--base", pico("qwen2"))
    assert ended.code == 1
    assert "is a delta of base" in ended.err


def test_steering_vectors_have_no_base(pvec, vectors, lab):
    ended = pvec("similarity", *vectors, "--base", lab.base)
    assert ended.code == 1
    assert "steering vectors are compared without a base" in ended.err


@pytest.mark.parametrize("words", [[], ["--per-layer"]], ids=["whole", "per layer"])
def test_the_figure_shows_every_number_and_name(pvec, three, tmp_path, words):
    file = tmp_path / "figures" / "heat.svg"
    assert pvec("similarity", *three, *words, "--figure", file).code == 0
    ElementTree.parse(file)
    drawn = file.read_text()
    wanted = similarity([Delta.load(path) for path in three])
    names = ["seed 0 and seed 2", "embedding"] if words else ["1 seed 0", "3 seed 2"]
    layer = "embedding" if words else None
    cosines = [float(wanted.cosine(layer)[pair]) for pair in ((0, 1), (1, 2))]
    numbers = [f"{round(cosine, 2) + 0.0:.2f}" for cosine in cosines]  # no -0.00
    assert all(f"<!-- {text} -->" in drawn for text in [*names, *numbers])
    again = pvec("similarity", *three, *words, "--figure", file)
    assert again.code == 1
    assert "add --force" in again.err
    assert pvec("similarity", *three, *words, "--figure", file, "--force").code == 0
    assert file.read_text() == drawn
    file.write_text("<svg>mine</svg>")
    refused = pvec("similarity", *three, *words, "--figure", file, "--force")
    assert refused.code == 1
    assert "was not drawn by this tool" in refused.err
    assert file.read_text() == "<svg>mine</svg>"


def test_the_figure_can_be_png(pvec, three, tmp_path):
    assert pvec("similarity", *three, "--figure", tmp_path / "heat.png").code == 0
    assert (tmp_path / "heat.png").read_bytes().startswith(b"\x89PNG")
