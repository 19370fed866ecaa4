"""``pvec steer shift``: what it prints and draws, how scores are given, and what it refuses."""

import json
import shutil
from dataclasses import replace
from itertools import count
from xml.etree import ElementTree

import pytest
import torch

import personality_vector as pv
from personality_vector.checkpoint import Checkpoint
from personality_vector.delta import Delta
from personality_vector.lab import BIG_FIVE_STATEMENTS, builtin
from personality_vector.numeric.random import generator_for
from personality_vector.steering import SteeringVector
from personality_vector.steering.shift import Baseline
from personality_vector.subject.chat import question
from personality_vector.subject.models import load_model

HIGH = pv.Pole("extraversion", "high")


@pytest.fixture(scope="module")
def made(tmp_path_factory, pico, pico_tuned):
    """Return ``made(name, **changes)``: a vector of pico llama; and its four fine-tunes."""
    folder = tmp_path_factory.mktemp("shift")
    model = Checkpoint.open(pico("llama")).fingerprint.digest
    drawn = {n: torch.randn(48, generator=generator_for(n, "v")) for n in (0, 1)}
    vectors = {
        "high": SteeringVector(drawn, model, HIGH, "high", "", (1, 1)),
        "low": SteeringVector(drawn, model, HIGH.opposite, "low", "", (1, 1)),
        "bare": SteeringVector(drawn, model, None, "bare", "", (1, 1)),
        "one": SteeringVector({1: drawn[1]}, model, HIGH, "one", "", (1, 1)),
        "strange": SteeringVector(drawn, "0" * 32, HIGH, "strange", "", (1, 1)),
        "stoic": SteeringVector(drawn, model, pv.Pole("stoicism", "high"), "stoic", "", (1, 1)),
    }
    for name, vector in vectors.items():
        vector.save(folder / name)
    base = pico("llama")
    tuned = [shutil.copytree(pico_tuned("llama", seed=n), folder / f"t{n}") for n in range(2)]
    for pole, seed in (("extraversion:low", 2), ("openness:high", 3)):
        delta = Delta.between(base, pico_tuned("llama", seed=seed), pole=pole)
        tuned.append(delta.save(folder / f"d{seed}"))
    (folder / "prompts.txt").write_text("Who are you?\nWhat do you like?\n")
    return folder, base, tuned


@pytest.fixture(autouse=True)
def few(tmp_path, monkeypatch):
    """Let the likelihood read a few of the shipped statements."""
    lines = builtin(BIG_FIVE_STATEMENTS).read_text().splitlines(keepends=True)
    (tmp_path / "few.jsonl").write_text("".join(lines[::20]))
    read = "personality_vector.measures.likelihood.BIG_FIVE_STATEMENTS"
    monkeypatch.setattr(read, str(tmp_path / "few.jsonl"))


@pytest.fixture
def shifted(pvec, made):
    """Return ``shifted(*words, vector="one", tuned=None)``: the verb on the models."""
    folder, base, tuned = made

    def call(*words, vector="one", models=None, prompts=True):
        asked = ["--prompts", folder / "prompts.txt"] if prompts else []
        given = tuned if models is None else models
        return pvec("steer", "shift", folder / vector, base, *given, *asked, *words)

    return call


@pytest.fixture
def scores(tmp_path):
    def write(text):
        file = tmp_path / "scores.csv"
        file.write_text(text)
        return file

    return write


def test_shifts_and_scores_are_those_of_each_model_in_turn(shifted, made):
    folder, base, tuned = made
    ended = shifted("--json")
    assert (ended.code, ended.err) == (0, "")
    rows = ended.json["models"]
    assert [row["model"] for row in rows] == ["t0", "t1", "d2", "d3"]
    assert [row["pole"] for row in rows] == ["", "", "extraversion:low", "openness:high"]
    subject = pv.Subject.load(base, device="cpu")
    chats = [question("Who are you?"), question("What do you like?")]
    baseline = Baseline(subject, chats, SteeringVector.load(folder / "one"), 1)
    likelihood = pv.LikelihoodSpec(traits=("extraversion",)).open()
    (before,) = likelihood.collect(subject, 0).readings
    other = pv.Subject(load_model(tuned[1]), subject.tokenizer)
    (after,) = likelihood.collect(other, 0).readings
    assert rows[1]["shift"] == pytest.approx(baseline.shift_of(other), abs=1e-6)
    assert rows[1]["score"] == pytest.approx(after.value - before.value, abs=1e-6)
    assert ended.json["pearson"]["low"] <= ended.json["pearson"]["value"]
    assert (ended.json["layer"], ended.json["prompts"]) == (1, 2)
    assert (ended.json["score"], ended.json["pole"]) == ("likelihood", "extraversion:high")


def test_the_base_itself_has_neither_moved_nor_changed(shifted, made):
    _, base, _ = made
    (row,) = shifted("--json", models=[base]).json["models"]
    assert (row["shift"], row["score"]) == (0.0, 0.0)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_moves_as_its_merge_does(shifted, made, tmp_path):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    tuned = get_peft_model(load_model(made[1]), config)
    tuned.save_pretrained(tmp_path / "adapter")
    whole = tuned.merge_and_unload()
    whole.save_pretrained(tmp_path / "whole")
    models = [tmp_path / "adapter", tmp_path / "whole"]
    one, other = shifted("--json", models=models).json["models"]
    assert one["shift"] == pytest.approx(other["shift"], abs=1e-5)
    assert one["score"] == pytest.approx(other["score"], abs=1e-5)
    assert abs(one["shift"]) > 1e-3


def test_with_a_vector_of_a_low_pole_scores_count_towards_low(shifted, made):
    models = made[2][:1]
    high, low = (
        shifted("--json", "--layer", 0, vector=name, models=models).json["models"][0]
        for name in ("high", "low")
    )
    assert high["shift"] == low["shift"] != 0
    assert high["score"] == -low["score"] != 0


def test_a_vector_without_a_pole_takes_one(shifted, made):
    words = ("--json", "--layer", 0)
    (given,) = shifted(*words, "--pole", HIGH, vector="bare", models=made[2][:1]).json["models"]
    (own,) = shifted(*words, vector="high", models=made[2][:1]).json["models"]
    assert given == own


def test_by_default_the_persona_of_the_trait_asks_its_evaluation_questions(shifted, tmp_path):
    words = ("--dry-run", "--json")
    assert shifted(*words, prompts=False).json["prompts"] == 20
    persona = {
        "name": "stoic",
        "description": "Is calm.",
        "instructions": [{"positive": "Be calm.", "negative": "Be wild."}],
        "questions": {"extract": ["How are you?"], "evaluate": ["What now?", "And then?"]},
    }
    (tmp_path / "stoic.yaml").write_text(json.dumps(persona))
    (tmp_path / "elicited").mkdir()
    shutil.copy(tmp_path / "stoic.yaml", tmp_path / "elicited" / "persona.yaml")
    for place in ("stoic.yaml", "elicited"):
        found = shifted(*words, "--persona", tmp_path / place, prompts=False)
        assert found.json["prompts"] == 2
    shipped = "training/steering/personas/openness"
    assert shifted(*words, "--persona", shipped, prompts=False).json["prompts"] == 20
    for place in (tmp_path, tmp_path / "absent"):
        ended = shifted(*words, "--persona", place, prompts=False)
        assert (ended.code, ended.err.count("\n")) == (1, 1)
        assert str(place) in ended.err


@pytest.mark.parametrize(("unscored", "left"), [((2,), 3), ((1, 2), 2), ((0,), 0)])
def test_a_model_without_a_score_is_left_out_and_none_is_imputed(
    shifted, monkeypatch, tmp_path, unscored, left
):
    from personality_vector.measures.likelihood import Likelihood

    collect = Likelihood.collect
    numbers = count()

    def some(self, subject, seed):
        found = collect(self, subject, seed)
        is_unscored = next(numbers) % 5 in unscored  # the base is the first
        readings = [replace(one, value=None) for one in found.readings]
        return replace(found, readings=readings) if is_unscored else found

    monkeypatch.setattr(Likelihood, "collect", some)
    found = shifted("--json", "--figure", tmp_path / "shift.svg").json
    assert found["unscored"] == 4 - left
    assert [row["score"] for row in found["models"]].count(None) == 4 - left
    assert (found["pearson"] is None) == (left < 3)
    ElementTree.parse(tmp_path / "shift.svg")
    said = shifted().out
    assert f"models without a score, left out of what follows and of a figure: {4 - left}" in said
    assert (f"over {left} models" if left == 3 else f"there are {left}") in said


def test_scores_are_found_by_path_or_by_folder(shifted, made, scores):
    names = ["t0", str(made[2][1]), "d2", "d3"]
    text = "model,score,note\n" + "".join(f"{name},{n}.5,x\n" for n, name in enumerate(names))
    ended = shifted("--scores", scores(text), "--json", "--layer", 1, vector="bare")
    assert (ended.code, ended.err) == (0, "")
    assert [row["score"] for row in ended.json["models"]] == [0.5, 1.5, 2.5, 3.5]


def test_a_table_and_a_sentence_say_it(shifted):
    ended = shifted()
    assert ended.code == 0
    for said in ("t0", "extraversion:low", "Pearson r", "Spearman", "over 4 models"):
        assert said in ended.out
    assert "score: likelihood shift to extraversion:high (nats per token)" in ended.out


def test_two_models_have_no_correlation(shifted, made):
    models = made[2][:2]
    ended = shifted(models=models)
    assert ended.code == 0
    assert "a correlation needs 3 models or more, and there are 2" in ended.out
    found = shifted("--json", models=models).json
    assert (found["pearson"], found["spearman"]) == (None, None)


def test_the_figure_names_the_models_and_is_replaced_by_force_alone(shifted, tmp_path):
    file = tmp_path / "shift.svg"
    assert shifted("--figure", file, "--quiet").code == 0
    ElementTree.parse(file)
    drawn = file.read_text()
    assert all(
        f"<!-- {name} -->" in drawn for name in ("to extraversion:low", "others", "of unknown pole")
    )
    assert "add --force" in shifted("--figure", file).err
    assert shifted("--figure", file, "--force").code == 0
    assert file.read_text() == drawn
    file.write_text("<svg>mine</svg>")
    assert "was not drawn by this tool" in shifted("--figure", file, "--force").err


@pytest.mark.parametrize(
    ("vector", "words", "said"),
    [
        ("high", [], "has directions for layers [0, 1]; choose one with --layer"),
        ("high", ["--layer", 7], "layer 7 does not exist"),
        ("high", ["--layer", 2], "has no direction for layer 2"),
        ("strange", ["--layer", 1], "from model 000000000000"),
        ("one", ["--pole", "extraversion:low"], "one points to extraversion:high; leave it out"),
        ("one", ["--persona", "x.yaml"], "give either --prompts or --persona"),
        ("bare", ["--layer", 1], "it names no pole; give --scores"),
        ("stoic", ["--layer", 1], "no shipped statements are of stoicism; give --scores"),
        ("one", ["--figure", "x.pdf"], ".svg or .png"),
        ("one", ["--scores", "absent.csv"], "absent.csv"),
    ],
)
def test_what_does_not_fit_is_one_sentence(shifted, vector, words, said):
    ended = shifted(*words, vector=vector)
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert said in ended.err


@pytest.mark.parametrize(
    ("vector", "said"),
    [
        ("bare", "the vector names no pole; give --prompts or --persona, or --pole"),
        ("stoic", "there is no shipped persona of stoicism; give --prompts or --persona"),
    ],
)
def test_without_questions_the_remedy_is_named(shifted, vector, said):
    ended = shifted("--layer", 1, vector=vector, prompts=False)
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert said in ended.err


@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
def test_a_model_of_another_base_is_refused(shifted, pico, family):
    ended = shifted(models=[pico(family)])
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert str(pico(family)) in ended.err


def test_a_delta_of_another_base_is_refused(shifted, pico, pico_tuned, tmp_path):
    other = Delta.between(pico("qwen2"), pico_tuned("qwen2")).save(tmp_path / "other")
    ended = shifted(models=[other])
    assert ended.code == 1
    assert "is a delta of base" in ended.err


def test_a_model_that_is_given_twice_is_refused(shifted, made):
    ended = shifted(models=[made[2][0]] * 2)
    assert ended.code == 1
    assert "is given twice" in ended.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model,score\nt0,1\nt1,2\nd2,3\n", "has no score for"),
        ("model,score\nt0,1\nt1,2\nd2,3\nd3,4\nd9,5\n", "d9 is none of the models"),
        ("model,score\nt0,1\nt0,2\n", "has a second score"),
        ("model,score\nt0,high\n", "line 2: score: "),
        ("model,score\nt0,inf\n", "line 2: score: "),
        ("model,points\nt0,1\n", "'score' is missing"),
        ("", "has no score for"),
    ],
)
def test_scores_of_other_models_are_one_sentence(shifted, scores, text, said):
    ended = shifted("--scores", scores(text))
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert said in ended.err
