"""``pvec steer fuse`` and ``pvec steer monitor``: what they write, print and refuse."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from personality_vector.checkpoint import Checkpoint
from personality_vector.merging.fusion import fuse
from personality_vector.numeric.random import generator_for
from personality_vector.steering import SteeringVector
from personality_vector.steering.monitor import projections
from personality_vector.subject.chat import answered, question
from personality_vector.subject.models import load_model, load_tokenizer
from personality_vector.subject.protocols import Reply
from personality_vector.subject.spec import Sampling
from personality_vector.subject.subject import generate_replies


@pytest.fixture
def saved(tmp_path, pico) -> Callable[..., Path]:
    """Return ``saved(name, layers=(1,), size=1.0)``: a vector of the pico Llama on disk."""
    model = Checkpoint.open(pico("llama")).fingerprint.digest

    def save(name: str, layers: tuple[int, ...] = (1,), size: float = 1.0) -> Path:
        directions = {
            layer: size * torch.randn(48, generator=generator_for(layer, name)) for layer in layers
        }
        vector = SteeringVector(directions, model, None, name, "response_mean", (1, 1))
        return vector.save(tmp_path / name)

    return save


@pytest.fixture
def prompts(tmp_path) -> Path:
    file = tmp_path / "prompts.txt"
    file.write_text("What are you like?\n\n  Do you like parties?  \n", encoding="utf-8")
    return file


def test_fuse_saves_the_fused_vector_and_prints_shares(pvec, saved, tmp_path):
    paths = [saved(name, (0, 2), size) for name, size in (("a", 1.0), ("b", 3.0), ("c", 0.5))]
    out = tmp_path / "fused"
    ended = pvec(
        "steer", "fuse", *paths, "--out", out, "--weights", "1,1,2", "--scale", "unit", "--json"
    )
    assert (ended.code, ended.err) == (0, "")
    vectors = [SteeringVector.load(path) for path in paths]
    expected = fuse(vectors, [1.0, 1.0, 2.0], scale="unit")
    written = SteeringVector.load(out)
    assert all(torch.equal(written[layer], expected.vector[layer]) for layer in (0, 2))
    assert written.label == ended.json["label"] == "mean(a, b, 2 * c; scale unit)"
    assert ended.json["norms"] == {str(n): written.norm(n) for n in (0, 2)}
    overall = [share for share in ended.json["shares"] if share["layer"] is None]
    assert [share["share"] for share in overall] == [s.share for s in expected.overall]
    assert len(ended.json["shares"]) == 9


def test_fuse_takes_methods_options_and_a_seed(pvec, saved, tmp_path):
    paths = [saved(name) for name in "ab"]
    words = ["steer", "fuse", *paths, "--label", "mine", "--seed", 3, "--method"]
    for method, option in (
        ("ties", "density=0.3"),
        ("ties", "trim=per_tensor"),
        ("dare", "drop_rate=0.4"),
    ):
        out = tmp_path / option
        assert pvec(*words, method, "--option", option, "--out", out).code == 0
        name, value = option.split("=")
        options = {name: float(value) if "." in value else value}
        vectors = [SteeringVector.load(path) for path in paths]
        expected = fuse(vectors, method=method, options=options, seed=3).vector
        assert torch.equal(SteeringVector.load(out)[1], expected[1])
        assert SteeringVector.load(out).label == "mine"


def test_fuse_prints_a_table(pvec, saved, tmp_path):
    paths = [saved("creative", (0, 1)), saved("futurist", (0, 1), 4.0)]
    ended = pvec("steer", "fuse", *paths, "--out", tmp_path / "f", "--per-layer")
    assert ended.code == 0
    assert "mean(creative, futurist), 2 layers, norm " in ended.out
    assert "share of the fused vector, by layer" in ended.out
    assert ended.out.count("futurist ") == 3
    assert ended.out.count("creative ") == 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--weights", "1"], "1 weights for 2 vectors"),
        (["--weights", "1,x"], "--weights 1,x: give numbers"),
        (["--weights", "1,-1"], "sum to 0"),
        (["--method", "mode"], "unknown method 'mode'"),
        (["--option", "density=0.2"], "mean takes no options"),
        (["--method", "ties", "--option", "density=2"], "density must be in (0, 1]"),
    ],
)
def test_fuse_refuses_in_one_sentence_and_writes_nothing(pvec, saved, tmp_path, words, said):
    out = tmp_path / "fused"
    ended = pvec("steer", "fuse", saved("a"), saved("b"), "--out", out, *words)
    assert ended.code == 1
    assert said in ended.err
    assert ended.err.count("\n") == 1
    assert not out.exists()


def test_fuse_replaces_only_by_force(pvec, saved, tmp_path):
    words = ["steer", "fuse", saved("a"), saved("b"), "--out", tmp_path / "a"]
    assert pvec(*words).code == 1
    assert SteeringVector.load(tmp_path / "a").label == "a"
    assert pvec(*words, "--force").code == 0
    assert SteeringVector.load(tmp_path / "a").label == "mean(a, b)"


def test_monitor_prints_what_the_library_measures(pvec, saved, prompts, pico):
    words = ["steer", "monitor", saved("v", (0, 1)), "--model", pico("llama"), "--prompts", prompts]
    words += ["--layer", 1, "--max-new-tokens", 6, "--device", "cpu"]
    ended = pvec(*words, "--json", "--quiet")
    assert (ended.code, ended.err) == (0, "")
    model, tokenizer = load_model(pico("llama")), load_tokenizer(pico("llama"))
    vector = SteeringVector.load(prompts.parent / "v")
    chats = [question(text) for text in ("What are you like?", "Do you like parties?")]
    greedy = Sampling(max_new_tokens=6, temperature=0.0)
    drawn = generate_replies(model, tokenizer, chats, greedy, seed=0)
    replies = [reply.text for reply in drawn]
    rows = ended.json["prompts"]
    assert [row["prompt"] for row in rows] == [chat[0]["content"] for chat in chats]
    assert [row["reply"] for row in rows] == replies
    before = projections(model, tokenizer, chats, vector, 1, "prompt_last")
    assert [row["before"] for row in rows] == pytest.approx(before.tolist(), abs=1e-5)
    answers = [answered(chat, reply) for chat, reply in zip(chats, replies, strict=True)]
    after = projections(model, tokenizer, answers, vector, 1)
    assert [row["response"] for row in rows] == pytest.approx(after.tolist(), abs=1e-5)
    table = pvec(*words)
    assert "projection on v, layer 1" in table.out
    assert f"{float(before[0]):.3g}" in table.out


def test_an_empty_reply_has_no_projection(pvec, saved, prompts, pico, monkeypatch):
    monkeypatch.setattr(
        "personality_vector.subject.subject.generate_replies",
        lambda *_, **__: [Reply("", 20, 1, 0.0), Reply("I like parties.", 20, 4, 0.0)],
    )
    words = ["steer", "monitor", saved("v"), "--model", pico("llama"), "--prompts", prompts]
    rows = pvec(*words, "--json").json["prompts"]
    assert rows[0]["response"] is None
    assert isinstance(rows[1]["response"], float)
    assert pvec(*words).code == 0


def test_monitor_knows_whose_vector_it_is(pvec, saved, prompts, pico_tuned):
    words = ["steer", "monitor", saved("v"), "--prompts", prompts, "--max-new-tokens", 2]
    refused = pvec(*words, "--model", pico_tuned("llama"))
    assert refused.code == 1
    assert "v: was extracted from model" in refused.err
    assert "add --another-model" in refused.err
    done = pvec(*words, "--model", pico_tuned("llama"), "--another-model", "--json")
    assert done.code == 0
    assert done.json["layer"] == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "layers [0, 1]; choose one with --layer"),
        (["--layer", "7"], "layer 7 does not exist"),
        (["--layer", "-1"], "no direction for layer 2"),
        (["--layer", "1", "--prompts", "/no/such"], "/no/such: cannot be read"),
    ],
)
def test_monitor_refuses_in_one_sentence(pvec, saved, prompts, pico, words, said):
    given = ["steer", "monitor", saved("v", (0, 1)), "--model", pico("llama")]
    ended = pvec(*given, "--prompts", prompts, *words)
    assert ended.code == 1
    assert said in ended.err
    assert ended.err.count("\n") == 1


def test_the_last_layer_may_be_counted_from_the_end(pvec, saved, prompts, pico):
    words = ["steer", "monitor", saved("v", (1, 2)), "--model", pico("llama"), "--prompts", prompts]
    last, named = (pvec(*words, "--json", "--layer", layer) for layer in (-1, 2))
    assert (last.code, last.err) == (0, "")
    assert last.json["layer"] == 2
    assert last.json == named.json
    table = pvec(*words, "--layer", -1)
    assert "projection on v, layer 2" in table.out


def test_a_layer_without_a_direction_is_refused_before_a_reply(
    pvec, saved, prompts, pico, monkeypatch
):
    def never(*_, **__):
        raise AssertionError("the model was run")

    monkeypatch.setattr("personality_vector.steering.monitor.projections", never)
    monkeypatch.setattr("personality_vector.subject.subject.generate_replies", never)
    words = ["steer", "monitor", saved("v", (0, 1)), "--model", pico("llama")]
    ended = pvec(*words, "--prompts", prompts, "--layer", -1)
    assert ended.code == 1
    assert "v: has no direction for layer 2" in ended.err


def test_an_empty_file_of_prompts_is_refused(pvec, saved, tmp_path, pico):
    (tmp_path / "none.txt").write_text("\n  \n")
    ended = pvec(
        "steer", "monitor", saved("v"), "--model", pico("llama"), "--prompts", tmp_path / "none.txt"
    )
    assert ended.code == 1
    assert "has no prompt" in ended.err


def test_json_is_printed_alone(pvec, saved, tmp_path):
    ended = pvec("steer", "fuse", saved("a"), "--out", tmp_path / "f", "--json")
    assert json.loads(ended.out)["out"] == str(tmp_path / "f")


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ("1,nan", "the weights must be finite numbers, got [1.0, nan]"),
        ("1,.inf", "--weights 1,.inf: give numbers separated by commas"),
        ("1,-inf", "the weights must be finite numbers, got [1.0, -inf]"),
        ("1,yes", "--weights 1,yes: give numbers separated by commas"),
        ("1,", "--weights 1,: give numbers separated by commas"),
    ],
)
def test_weights_are_finite_numbers(pvec, saved, tmp_path, weights, said):
    paths = [saved(name) for name in "ab"]
    ended = pvec("steer", "fuse", *paths, "--out", tmp_path / "f", "--weights", weights)
    assert ended.code == 1
    assert said in ended.err
    assert not (tmp_path / "f").exists()
