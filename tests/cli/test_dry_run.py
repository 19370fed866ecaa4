"""``--dry-run``: every input is opened, the plan is printed, and nothing is written."""

import pytest
import torch
from safetensors.torch import save_file
from typer.main import get_command

from personality_vector.checkpoint import Checkpoint
from personality_vector.cli.main import app
from personality_vector.steering import SteeringVector
from personality_vector.traits import Pole


@pytest.fixture
def vector(tmp_path, pico):
    model = Checkpoint.open(pico("llama")).fingerprint.digest
    pole = Pole("extraversion", "high")
    made = SteeringVector({1: torch.ones(48)}, model, pole, "v", "response_mean", (1, 1))
    return made.save(tmp_path / "v")


@pytest.fixture
def verbs(tmp_path, vector, pico, pico_tuned):
    """Return the words of every verb without a recipe that has a plan, but for --out."""
    base, tuned, prompts = pico("llama"), pico_tuned("llama"), tmp_path / "prompts.txt"
    prompts.write_text("What are you like?\nWho are you?\n")
    dictionary = tmp_path / "sae_weights.safetensors"
    save_file({"W_dec": torch.eye(4, 48)}, dictionary)
    return {
        "between": ["between", base, tuned, "--prompts", prompts, "--layer", 1],
        "creativity": ["creativity", "--model", base],
        "creativity-layer": ["creativity-layer", vector, "--model", base, "--layer", 1],
        "fuse": ["fuse", vector, vector, "--weights", "1,3"],
        "bake": ["bake", vector, "--model", base, "--layer", -2, "--coefficient", 2],
        "monitor": ["monitor", vector, "--model", base, "--prompts", prompts],
        "shift": ["shift", vector, base, tuned, "--prompts", prompts],
        "sae": ["sae", vector, "--weights", dictionary, "--model", base],
    }


PLANS = {
    "between": {"prompts": 2, "layers": [1], "pooling": "prompt_last"},
    "creativity": {"pairs": 31},
    "creativity-layer": {"vector": "v", "layers": [1], "validation": 13, "test": 12},
    "fuse": {"label": "mean(v, 3 * v)"},
    "bake": {"vector": "v", "layers": [1], "coefficient": 2.0, "route": "bias"},
    "monitor": {"vector": "v", "layer": 1, "prompts": 2, "max_new_tokens": 64},
    "shift": {"vector": "v", "layer": 1, "prompts": 2, "score": "likelihood"},
    "sae": {"vector": "v", "layer": 1, "features": 4},
}
PRINTS = {"monitor", "shift", "creativity-layer"}
"""Verbs that print their result and write no directory."""


@pytest.mark.parametrize("verb", PLANS)
def test_a_plan_is_printed_and_nothing_is_written(pvec, verbs, tmp_path, verb, monkeypatch):
    monkeypatch.setattr("personality_vector.subject.models.load_model", pytest.fail)
    words = ["steer", *verbs[verb], *([] if verb in PRINTS else ["--out", tmp_path / "out"])]
    before = sorted(tmp_path.rglob("*"))
    ended = pvec(*words, "--dry-run", "--json")
    assert (ended.code, ended.err) == (0, "")
    assert {key: ended.json[key] for key in PLANS[verb]} == PLANS[verb]
    assert verb in PRINTS or ended.json["out"] == str(tmp_path / "out")
    said = pvec(*words, "--dry-run")
    assert said.code == 0
    assert f"{next(iter(PLANS[verb]))}:" in said.out
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("verb", sorted(PLANS.keys() - PRINTS))
def test_an_output_that_is_there_is_refused_before_the_work(pvec, verbs, tmp_path, verb):
    (tmp_path / "out").mkdir()
    ended = pvec("steer", *verbs[verb], "--out", tmp_path / "out", "--dry-run")
    assert ended.code == 1
    assert "choose another --out" in ended.err


@pytest.mark.parametrize(
    ("verb", "more", "said"),
    [
        ("between", ["--layer", 7], "layer 7 does not exist"),
        ("between", ["--device", "cuda:99"], "device cuda:99"),
        ("creativity", ["--device", "cuda:99"], "device cuda:99"),
        ("creativity-layer", ["--layer", 0], "has no direction for layer 0"),
        ("bake", ["--layer", 7], "layer 7 does not exist"),
        ("bake", ["--layer", 0], "has no direction for layer 0"),
        ("fuse", ["--method", "mode"], "unknown method 'mode'"),
        ("monitor", ["--layer", 7], "layer 7 does not exist"),
        ("monitor", ["--layer", 0], "has no direction for layer 0"),
        ("monitor", ["--layer", -1], "has no direction for layer 2"),
        ("monitor", ["--device", "cuda:99"], "device cuda:99"),
        ("shift", ["--layer", 7], "layer 7 does not exist"),
        ("shift", ["--device", "cuda:99"], "device cuda:99"),
    ],
)
def test_an_impossible_plan_is_refused(pvec, verbs, tmp_path, verb, more, said):
    out = [] if verb in PRINTS else ["--out", tmp_path / "out"]
    ended = pvec("steer", *verbs[verb], *more, *out, "--dry-run")
    assert ended.code == 1
    assert said in ended.err


@pytest.mark.parametrize(
    ("verb", "option", "said"),
    [
        ("bake", "--model", "v: was extracted from model"),
        ("monitor", "--model", "v: was extracted from model"),
        ("between", None, "only a model and what was fine-tuned from it can be subtracted"),
    ],
)
def test_the_plan_of_another_model_is_refused(pvec, verbs, pico, tmp_path, verb, option, said):
    words = list(verbs[verb])
    words[words.index(option) + 1 if option else 2] = pico("qwen3")
    out = [] if verb in PRINTS else ["--out", tmp_path / "out"]
    ended = pvec("steer", *words, *out, "--dry-run")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert said in ended.err


ORDER = [
    *("--model", "--prompts", "--layer", "--seed", "--batch-size", "--dtype", "--device"),
    *("--out", "--dry-run", "--force", "--json", "--quiet"),
]


def test_flags_that_mean_the_same_have_one_help_and_one_order():
    """Only --layer differs: some verbs act at one block, the others at several."""
    steer = get_command(app).commands["steer"]
    flags = {
        verb: {one.opts[0]: one.help for one in steer.commands[verb].params if one.opts[0] in ORDER}
        for verb in PLANS
    }
    for own in flags.values():
        assert list(own) == [flag for flag in ORDER if flag in own]
    for flag in set(ORDER) - {"--layer"}:
        assert len({own[flag] for own in flags.values() if flag in own}) == 1, flag
    for verb, own in flags.items():
        assert {"--dry-run", "--json", "--quiet"} <= set(own)
        assert ("--out" in own) == (verb not in PRINTS)
        assert ("--force" in own) == (verb not in {"monitor", "creativity-layer"})  # write nothing
