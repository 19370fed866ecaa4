"""What manifests say of a chat template's options, of dropped rows and of models of the Hub."""

import json
import shutil

import pytest

from personality_vector.interventions.neurons.chosen import NeuronSet
from personality_vector.manifest import MANIFEST
from personality_vector.merging.fusion import fuse
from personality_vector.steering import SteeringVector
from tests.cli.conftest import SAID
from tests.subject import families

COMMIT = "5d1f0c2a" * 5
MODEL = "somebody/a-model"


def manifest(path):
    return json.loads((path / MANIFEST).read_text())


@pytest.fixture
def sides(tmp_path):
    """Return settings of a steer recipe whose sides have an empty and a repeated row each."""
    settings = []
    for side, level in (("positive", "high"), ("negative", "low")):
        chats = [{"prompt": "Hi", "completion": text} for text in (*SAID[level], SAID[level][0])]
        rows = [*chats, {"prompt": "Hi", "completion": " "}]
        (tmp_path / f"{side}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        given = {"source": str(tmp_path / f"{side}.jsonl"), "part": "all", "drop": ["duplicate"]}
        settings += ["--set", f"{side}={json.dumps(given)}"]
    return settings


@pytest.mark.parametrize("verb", ["extract", "neurons"])
def test_what_a_vector_was_made_with_is_said_in_words(lab, pvec, sides, tmp_path, verb):
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(lab.base, model)
    (model / "chat_template.jinja").write_text(families.QWEN3)
    words = ["steer", verb, lab.extract, "--set", f"model={model}", "--out", out, "--quiet"]
    told = ["--set", "template_options.enable_thinking=false"]
    ended = pvec(*words, *sides, *told)
    assert ended.code == 0, ended.err
    found = manifest(out)
    assert found["template_options"] == {"enable_thinking": False}
    assert found["dropped"] == {"duplicate": 2, "empty": 2}
    kind = SteeringVector if verb == "extract" else NeuronSet
    made_with = {key: found[key] for key in ("template_options", "dropped")}
    assert kind.load(out).made_with == made_with
    planned = pvec(*words[:-3], "--out", tmp_path / "other", *sides, *told, "--dry-run", "--json")
    assert planned.json["dropped"] == found["dropped"]


def test_a_manifest_does_not_name_what_was_not_given(lab, pvec, tmp_path):
    out = tmp_path / "out"
    assert pvec("steer", "extract", lab.extract, "--out", out, "--quiet").code == 0
    assert not {"template_options", "dropped", "revision", "made_with"} & manifest(out).keys()
    assert "made_with" not in json.loads((out / "vector.json").read_text())


def test_a_sum_keeps_what_its_terms_share(lab, pvec, tmp_path):
    assert pvec("steer", "extract", lab.extract, "--out", tmp_path / "v", "--quiet").code == 0
    vector = SteeringVector.load(tmp_path / "v")
    for shared in ({"revision": COMMIT}, {}):
        vector.made_with.clear()
        vector.made_with.update(shared)
        other = SteeringVector.load(tmp_path / "v")
        other.made_with.update({"revision": COMMIT, "dropped": {"empty": 1}})
        assert (vector + other).made_with == fuse([other, vector]).vector.made_with == shared


@pytest.fixture
def hub(lab, tmp_path, monkeypatch):
    """Put a model and its fine-tune into a cache as huggingface_hub lays it out, offline."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for name, path in ((MODEL, lab.base), (f"{MODEL}-tuned", lab.tuned)):
        folder = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(path, folder / "snapshots" / COMMIT)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(COMMIT)


@pytest.mark.usefixtures("hub")
def test_manifests_name_the_commit_that_a_hub_id_stood_for(lab, pvec, tmp_path, monkeypatch):
    monkeypatch.chdir(lab.folder)
    measures = [{"likelihood": {"traits": ["extraversion"], "statements": "statements.jsonl"}}]
    term = {"tuned": f"{MODEL}-tuned", "alpha": 0.5}
    for kind, words in {
        "train": ["train", lab.train, "--set", f"base={MODEL}"],
        "merge": ["merge", lab.merge, "--set", f"base={MODEL}", "--set", f"terms=[{term}]"],
        "vector": ["steer", "extract", lab.extract, "--set", f"model={MODEL}"],
        "run": ["eval", lab.eval, "--set", f"model={MODEL}", "--set", f"measures={measures}"],
    }.items():
        ended = pvec(*words, "--out", tmp_path / kind, "--quiet")
        assert ended.code == 0, ended.err
        found = manifest(tmp_path / kind)
        assert (found if kind == "vector" else found["base"])["revision"] == COMMIT
    assert manifest(tmp_path / "merge")["terms"][0]["revision"] == COMMIT
