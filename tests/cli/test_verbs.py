"""Every verb: what it writes, what it prints, and what it leaves alone."""

import json
from pathlib import Path

import pytest

from personality_vector.checkpoint import Checkpoint
from personality_vector.cli.main import run
from personality_vector.delta import Delta
from personality_vector.manifest import MANIFEST
from personality_vector.steering import SteeringVector

WRITTEN = {
    ("train",): ("train", {"out", "pole", "examples", "dropped", "cut", "loss"}),
    ("merge",): ("merge", {"out", "kind", "realised", "terms", "base"}),
    ("steer", "extract"): ("steering_vector", {"out", "pole", "counts", "norms"}),
    ("eval",): ("eval", {"out", "report", "measures"}),
    ("sweep",): ("sweep", {"out", "report", "dose and response"}),
    ("profile",): ("profile", {"out", "verdict", "alphas", "slopes", "tries"}),
    ("compare",): ("compare", {"out", "report", "dose and response", "at matched likelihood"}),
}


def tensors(path):
    checkpoint = Checkpoint.open(path)
    return {name: checkpoint[name] for name in checkpoint.names}


@pytest.mark.parametrize("words", WRITTEN, ids=" ".join)
def test_a_recipe_verb_writes_out_and_prints_json_and_nothing_else(pvec, lab, tmp_path, words):
    kind, keys = WRITTEN[words]
    recipe = getattr(lab, words[-1])
    out = tmp_path / "out"
    ended = pvec(*words, recipe, "--out", out, "--json", "--quiet")
    assert (ended.code, ended.err) == (0, "")
    assert keys <= ended.json.keys()
    assert ended.json["out"] == str(out)
    assert json.loads((out / MANIFEST).read_text())["kind"] == kind
    shown = pvec("show", out, "--json").json
    assert shown["path"] == str(out)
    assert shown["kind"] in (kind, "checkpoint")


@pytest.mark.parametrize("words", WRITTEN, ids=" ".join)
def test_a_dry_run_writes_nothing_and_prints_the_plan(pvec, lab, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    recipe = getattr(lab, words[-1])
    plain, as_json = pvec(*words, recipe, "--dry-run"), pvec(*words, recipe, "--dry-run", "--json")
    assert (plain.code, plain.err) == (as_json.code, as_json.err) == (0, "")
    assert as_json.json["out"] == f"runs/{recipe.parent.name}-{recipe.stem}"
    assert lab.base in plain.out
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_how_many_cells_there_are_and_whose(pvec, lab):
    plan = pvec("sweep", lab.sweep, "--set", "seeds=[0, 1]", "--dry-run", "--json").json
    assert plan["cells"] == 3 * 4 * 2, "base and two strengths, four measures, two seeds"
    assert set(plan["identities"]) == {"weights"}
    assert (
        plan["base_identity"] == pvec("eval", lab.eval, "--dry-run", "--json").json["base_identity"]
    )
    assert [set(measure) for measure in plan["recipe"]["measures"]] == [
        {"likelihood"},
        {"interview"},
        {"divergence"},
        {"guards"},
    ]


@pytest.mark.parametrize(
    ("word", "setting"),
    [
        ("merge", "base=/no/such"),
        ("train", "data.source=/no/such"),
        ("eval", "model=/no/such"),
        ("sweep", "interventions.0.tuned=/no/such"),
        ("compare", "measure.statements=/no/such"),
    ],
)
def test_a_dry_run_checks_that_inputs_exist(pvec, lab, word, setting):
    """``--dry-run`` promises to check everything."""
    assert pvec(word, getattr(lab, word), "--dry-run", "--set", setting).code == 1


def test_a_recipe_can_be_changed_on_the_command_line(pvec, lab):
    plan = pvec(
        "merge", lab.merge, "--set", "terms.0.alpha=-1", "--set", "seed=7", "--dry-run", "--json"
    )
    assert plan.json["terms"][0]["alpha"] == -1.0
    assert plan.json["seed"] == 7


def test_the_short_form_is_the_recipe_it_means(pvec, lab, tmp_path):
    words = ["merge", "--base", lab.base, "--term", f"{lab.tuned}=0.5"]
    assert pvec(*words, "--out", tmp_path / "short").code == 0
    assert pvec("merge", lab.merge, "--out", tmp_path / "long").code == 0
    assert (tmp_path / "short" / MANIFEST).read_bytes() == (
        tmp_path / "long" / MANIFEST
    ).read_bytes()
    weights = [tmp_path / name / "model.safetensors" for name in ("short", "long")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_the_short_form_takes_method_and_options(pvec, lab, tmp_path, monkeypatch):
    monkeypatch.chdir(lab.folder)
    words = ["--base", lab.base, "--term", "delta-0=0.8", "--term", "./delta-1=-0.4"]
    words += ["--method", "ties", "--option", "density=0.3", "--option", "consensus=sum"]
    plan = pvec("merge", *words, "--out", tmp_path / "out", "--dry-run", "--json").json
    assert plan["method"] == "ties"
    assert plan["options"] == {
        "density": 0.3,
        "trim": "global",
        "election": "mass",
        "consensus": "sum",
        "lambda": 1.0,
    }
    assert [(term["label"], term["alpha"]) for term in plan["terms"]] == [
        ("seed 0", 0.8),
        ("seed 1", -0.4),
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--base", "b", "--out", "o"], "give a RECIPE, or --base B and at least one --term"),
        (["--term", "v=1", "--out", "o"], "give a RECIPE, or --base B and at least one --term"),
        ([], "give a RECIPE, or --base B and at least one --term"),
        (["--base", "b", "--term", "v", "--out", "o"], "--term v: write VECTOR=ALPHA"),
        (["--base", "b", "--term", "=1", "--out", "o"], "--term =1: write VECTOR=ALPHA"),
        (
            ["--base", "b", "--term", "v=much", "--out", "o"],
            "alpha must be a number, such as 0.8, not",
        ),
        (["--base", "b", "--term", "v=.nan", "--out", "o"], "terms.0.alpha: Input should be a fin"),
    ],
)
def test_a_short_form_that_says_too_little_is_refused(pvec, words, message):
    ended = pvec("merge", *words)
    assert (ended.code, ended.out) == (1, "")
    assert message in ended.err


def test_force_replaces_only_what_this_tool_wrote(pvec, lab, tmp_path):
    words = ["merge", lab.merge, "--out", tmp_path / "out"]
    assert pvec(*words).code == 0
    before = tensors(tmp_path / "out")
    refused = pvec(*words, "--set", "terms.0.alpha=0.25")
    assert refused.code == 1
    assert "exists; choose another --out, or add --force" in refused.err
    assert all((tensors(tmp_path / "out")[name] == tensor).all() for name, tensor in before.items())
    assert pvec(*words, "--set", "terms.0.alpha=0.25", "--force").code == 0
    changed = tensors(tmp_path / "out")
    assert not all((changed[name] == tensor).all() for name, tensor in before.items())
    (tmp_path / "out" / MANIFEST).unlink()
    foreign = pvec(*words, "--force")
    assert foreign.code == 1
    assert "was not written by this tool" in foreign.err


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_diff_saves_fine_tuned_minus_base(pvec, lab, tmp_path, dtype):
    words = ["--pole", "openness:low", "--dtype", dtype, "--json", "--out", tmp_path / "v"]
    ended = pvec("diff", lab.base, lab.tuned, *words)
    assert (ended.code, ended.err) == (0, "")
    loaded, expected = Delta.load(tmp_path / "v"), Delta.between(lab.base, lab.tuned)
    assert str(loaded.pole) == ended.json["pole"] == "openness:low"
    assert ended.json["norm"] == pytest.approx(expected.norm())
    assert loaded.cosine(expected) == pytest.approx(1.0, abs=1e-4)
    assert (pvec("show", tmp_path / "v", "--json").json["loss"] < 1e-7) == (dtype == "float32")


def test_similarity_is_the_cosine_of_every_two(pvec, lab):
    ended = pvec("similarity", *lab.deltas, lab.deltas[0], "--json")
    one, two = map(Delta.load, lab.deltas)
    cosine = pytest.approx(one.cosine(two))
    near = pytest.approx(1.0)
    assert ended.json["cosine"] == [
        [near, cosine, near],
        [cosine, near, cosine],
        [near, cosine, near],
    ]
    assert ended.json["labels"] == ["1 seed 0", "2 seed 1", "3 seed 0"]
    assert "2 seed 1" in pvec("similarity", *lab.deltas).out
    assert pvec("similarity", lab.deltas[0]).code == 1


def test_show_says_what_a_plain_checkpoint_is(pvec, lab):
    shown = pvec("show", lab.base, "--json").json
    checkpoint = Checkpoint.open(lab.base)
    assert shown["model_type"] == "llama"
    assert shown["fingerprint"] == checkpoint.fingerprint.digest
    assert shown["tensors"] == len(checkpoint.names)


def test_an_extracted_vector_belongs_to_its_model_and_can_be_swept(pvec, lab, tmp_path):
    assert pvec("steer", "extract", lab.extract, "--out", tmp_path / "v").code == 0
    vector = SteeringVector.load(tmp_path / "v")
    assert vector.model == Checkpoint.open(lab.base).fingerprint.digest
    assert vector.counts == (2, 2)
    change = f"interventions.0={{label: v, vector: {tmp_path / 'v'}, layers: [1]}}"
    ended = pvec("sweep", lab.sweep, "--set", change, "--out", tmp_path / "run", "--json")
    assert ended.code == 0
    assert {row["intervention"] for row in ended.json["dose and response"]} == {"v"}


def test_report_writes_the_page_again_from_the_results_alone(pvec, lab, tmp_path):
    out = tmp_path / "run"
    assert pvec("eval", lab.eval, "--out", out).code == 0
    page = (out / "report.html").read_bytes()
    (out / "report.html").unlink()
    ended = pvec("report", out, "--json")
    assert ended.json == {"report": str(out / "report.html")}
    assert (out / "report.html").read_bytes() == page
    assert pvec("report", tmp_path).code == 1


def test_a_shipped_recipe_is_copied_once(pvec, tmp_path):
    listed = pvec("recipes", "--json").json
    copied = pvec("recipes", "copy", "merges/smoke", tmp_path)
    assert copied.out == f"{tmp_path / 'smoke.yaml'}\n"
    assert (tmp_path / "smoke.yaml").read_bytes() == Path(listed["merges/smoke"]).read_bytes()
    again = pvec("recipes", "copy", "merges/smoke", tmp_path)
    assert again.code == 1
    assert "exists; choose another destination" in again.err
    assert pvec("recipes", "copy", "merges/smoke", tmp_path / "new" / "mine.yaml").code == 0


@pytest.mark.parametrize("name", ["training/smoke", "training/steering/smoke", "eval/smoke"])
def test_a_copied_recipe_still_finds_its_data(pvec, tmp_path, name):
    assert pvec("recipes", "copy", name, tmp_path / "mine.yaml").code == 0
    verb = {"training/smoke": "train", "eval/smoke": "eval"}.get(name, "steer extract")
    recipe = pvec(*verb.split(), tmp_path / "mine.yaml", "--dry-run", "--json").json["recipe"]
    source = (
        recipe.get("data")
        or recipe.get("positive")
        or {"source": recipe["measures"][0]["likelihood"]["statements"]}
    )
    assert Path(source["source"]).is_file()


@pytest.mark.parametrize(
    "words",
    [
        ["merge", "merges/smoke", "--method", "ties", "--out", "out"],
        ["merge", "--base", "b", "--term", "v=1", "--set", "method=ties", "--out", "out"],
    ],
)
def test_options_that_would_be_ignored_are_refused(words, capsys):
    assert run(words) == 1
    assert "RECIPE" in capsys.readouterr().err
