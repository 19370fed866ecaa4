"""A sweep: which cells it measures, that it resumes, and that the base is left as it was."""

import json
import sqlite3
from itertools import product

import pandas as pd
import pytest
import torch
from personality_vector.measures.suite import Suite
from personality_vector.study.runs import write_run_manifest
from personality_vector.study.sweep import (
    BASE,
    by_strength,
    correlation,
    dose_response,
    evaluate,
    prepare,
    sweep,
)

from personality_vector.checkpoint import locked
from personality_vector.errors import (
    CheckpointError,
    DataError,
    LockedError,
    OutputExistsError,
    RecipeError,
)
from personality_vector.manifest import MANIFEST
from personality_vector.study import sweep as module
from personality_vector.study.recipe import EvalRecipe, SweepRecipe
from personality_vector.subject.models import load_model, load_tokenizer

TRAITS = ("extraversion", "openness")
WORDS = {"high": "I love {} and I talk at every party", "low": "I am quiet about {} alone"}
TOPICS = ("music", "people", "books", "tea", "rain", "games")
STRENGTHS = (-1.0, 0.5, 1.0)
CELLS = [(BASE, 0.0), *product(("prompt", "weights"), STRENGTHS)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with a small file of statements."""
    folder = tmp_path_factory.mktemp("sweep")
    rows = [
        {
            "trait": trait,
            "level": level,
            "statement": f"{WORDS[level].format(topic)} {trait[:4]}",
            "part": "held_out" if index < 2 else "train",
        }
        for trait, level in product(TRAITS, WORDS)
        for index, topic in enumerate(TOPICS)
    ]
    (folder / "statements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def recipe(folder, pico, pico_tuned):
    """Return ``recipe(**changes)``: a sweep of weights and a prompt on pico llama."""

    def make(kind=SweepRecipe, **changes):
        data = {
            "base": str(pico("llama")),
            "interventions": [
                {"label": "weights", "tuned": str(pico_tuned("llama"))},
                {"label": "prompt", "prompt": "extraversion:high"},
            ],
            "strengths": STRENGTHS,
            "measure": {
                "traits": TRAITS,
                "statements": "statements.jsonl",
                "generation": {"max_new_tokens": 6, "samples": 2},
            },
            "device": "cpu",
        }
        return kind.parse({**data, **changes}, origin="test", folder=folder)

    return make


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "done"


@pytest.fixture
def results(recipe, done):
    """Return the results of the sweep; measured once, then resumed."""
    with sweep(recipe(), done) as found:
        yield found


@pytest.fixture
def measured(monkeypatch):
    """Return the list that every cell measured from now on is noted in."""
    cells = []
    real = module.Bench.findings

    def noted(self, label, strength):
        cells.append((label, strength))
        return real(self, label, strength)

    monkeypatch.setattr(module.Bench, "findings", noted)
    return cells


def test_there_is_a_cell_for_the_base_and_for_each_strength(results):
    cells = results.frame("cells")
    assert list(zip(cells["intervention"], cells["strength"], strict=True)) == CELLS
    measures = results.frame("measures")
    each = measures[~measures["measure"].str.startswith("judge_")]
    kinds = {("", side) for side in ("words", "distinct_2", "verbatim", "kl_to_base", "perplexity")}
    kinds |= set(product(TRAITS, ("probe", "judge")))
    for _, cell in each.groupby(["intervention", "strength"]):
        found = set(zip(cell["trait"], cell["measure"], strict=True))
        assert found - {("", "realised")} == kinds
    assert set(measures[measures["measure"] == "judge_accuracy"]["intervention"]) == {BASE}


def test_every_answer_is_kept_with_its_score_or_the_reason_for_none(results):
    answers = results.frame("answers")
    assert len(answers) == len(CELLS) * 2 * len(TRAITS)
    unscored = answers[answers["score"].isna()]
    assert (unscored["reason"] != "").all()
    judged = results.frame("measures").query("measure == 'judge'")
    assert judged["unscored"].sum() == len(unscored)
    assert judged["n"].sum() == len(answers) - len(unscored)


def test_the_base_has_no_divergence_from_itself(results):
    kl = results.frame("measures").query("measure == 'kl_to_base'")
    assert kl.query("intervention == 'base'")["value"].abs().max() < 1e-6
    assert kl.query("intervention == 'weights'")["value"].min() > 1e-6


def test_a_finished_sweep_measures_nothing_again(results, recipe, done, measured):
    before = results.frame("measures")
    results.close()
    with sweep(recipe(), done) as again:
        assert measured == []
        pd.testing.assert_frame_equal(again.frame("measures"), before)


def test_an_interrupted_sweep_measures_what_is_missing_and_gets_the_same(
    results, recipe, tmp_path, measured, monkeypatch
):
    real = module.Results.write_cell

    def killed(self, label, *rest):
        if label == "prompt":
            raise KeyboardInterrupt
        return real(self, label, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(module.Results, "write_cell", killed)
        with pytest.raises(KeyboardInterrupt):
            sweep(recipe(), tmp_path / "run")
    measured.clear()
    with sweep(recipe(), tmp_path / "run") as resumed:
        assert measured == [("prompt", strength) for strength in STRENGTHS]
        pd.testing.assert_frame_equal(resumed.frame("measures"), results.frame("measures"))
        pd.testing.assert_frame_equal(resumed.frame("answers"), results.frame("answers"))


def test_strength_zero_is_the_base(recipe):
    bench = prepare(recipe())
    base = bench.findings(BASE, 0.0)
    for label, intervention in bench.interventions.items():
        assert bench.findings(label, 0.0) == base
        with intervention.applied(bench.model, 0.0) as edit:
            assert bench.suite(bench.model, bench.tokenizer, edit) == base


def test_the_model_is_bit_for_bit_as_it_was(recipe):
    bench = prepare(recipe())
    before = {name: value.clone() for name, value in bench.model.state_dict().items()}
    for label, strength in CELLS:
        bench.findings(label, strength)
    after = bench.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"seed": 1}, "seed"),
        ({"strengths": [1.0]}, "strengths"),
        ({"dtype": "bfloat16"}, "dtype"),
        ({"interventions": [{"label": "x", "prompt": "openness:low"}]}, "contents, interventions"),
    ],
)
def test_another_recipe_in_the_same_folder_is_refused(results, recipe, done, change, field):
    with pytest.raises(OutputExistsError, match=f"another run: {field} differ"):
        sweep(recipe(**change), done)
    assert len(results.frame("cells")) == len(CELLS)


def test_a_trait_without_statements_is_refused(recipe, tmp_path):
    spec = {**recipe().measure.model_dump(), "traits": ["humour"]}
    with pytest.raises(DataError, match="no train statements of humour"):
        sweep(recipe(measure=spec), tmp_path / "run")


def test_an_evaluation_is_the_base_alone(recipe, results, tmp_path, folder):
    data = recipe().model_dump(exclude={"base", "interventions", "strengths"})
    one = EvalRecipe.parse({**data, "model": recipe().base}, origin="test", folder=folder)
    with evaluate(one, tmp_path) as found:
        assert found.frame("cells")["intervention"].tolist() == [BASE]
        own, of_sweep = (
            r.frame("measures").query("intervention == 'base'") for r in (found, results)
        )
        both = own.merge(of_sweep, on=["trait", "measure"])
        assert len(both) == len(own)
        pd.testing.assert_series_equal(both["value_x"], both["value_y"], check_names=False)
        spec = found.spec
    write_run_manifest(tmp_path, spec, "eval")
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    assert (manifest["kind"], manifest["seed"]) == ("eval", 0)
    assert "results.sqlite" in manifest["files"]


def test_each_strength_has_a_row_with_every_probe_and_judge(results):
    table = by_strength(results)
    assert list(zip(table["intervention"], table["strength"], strict=True)) == CELLS
    measures = results.frame("measures").set_index(
        ["intervention", "strength", "trait", "measure"]
    )["value"]
    for row in table.to_dict("records"):
        for trait, measure in product(TRAITS, ("probe", "judge")):
            key = (row["intervention"], row["strength"], trait, measure)
            assert row[f"{trait} {measure}"] == pytest.approx(measures[key], abs=0, nan_ok=True)


def test_dose_response_follows_the_measured_values(results):
    table = dose_response(results).set_index(["intervention", "trait", "measure"])
    assert set(table.index) == set(product(("prompt", "weights"), TRAITS, ("probe", "judge")))
    rows = results.frame("measures").query(
        "intervention == 'weights' and trait == 'openness' and measure == 'probe'"
    )
    row = table.loc[("weights", "openness", "probe")]
    assert row["pearson"] == pytest.approx(rows["strength"].corr(rows["value"]))
    assert row["n"] == len(STRENGTHS)


def test_a_correlation_is_undefined_without_enough_points():
    alphas = [1.0, 2.0, 3.0, 4.0]
    assert correlation(alphas, [2.0, 4.0, 6.0, 8.0])["slope"] == pytest.approx(2.0)
    mixed = correlation(alphas, [1.0, 3.0, 2.0, 4.0])
    assert mixed["spearman"] == pytest.approx(0.8)
    assert mixed["ci_low"] < mixed["pearson"] < mixed["ci_high"]
    for strengths, values in ((alphas[:2], alphas[:2]), (alphas, [5.0] * 4), ([], [])):
        assert all(value != value for value in correlation(strengths, values).values())


def test_the_suite_is_the_same_whenever_it_is_prepared(recipe):
    model, tokenizer = load_model(recipe().base), load_tokenizer(recipe().base)
    one, two = (Suite.prepare(recipe().measure, 0, model, tokenizer) for _ in range(2))
    assert one(model, tokenizer) == two(model, tokenizer)
    assert one.quality() == two.quality()


def test_a_sweep_that_measured_nothing_leaves_nothing(recipe, tmp_path):
    spec = {**recipe().measure.model_dump(), "traits": ["humour"]}
    with pytest.raises(DataError):
        sweep(recipe(measure=spec), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_that_another_process_holds_is_refused(recipe, tmp_path):
    with locked(tmp_path / "run"), pytest.raises(LockedError, match="another process"):
        sweep(recipe(), tmp_path / "run")


def test_force_never_deletes_a_database_that_is_not_ours(recipe, tmp_path):
    (tmp_path / "run").mkdir()
    theirs = sqlite3.connect(tmp_path / "run" / "results.sqlite")
    theirs.execute("CREATE TABLE thesis (chapter TEXT)")
    theirs.commit()
    theirs.close()
    with pytest.raises(CheckpointError, match="not one of results"):
        sweep(recipe(), tmp_path / "run", force=True)
    with sqlite3.connect(tmp_path / "run" / "results.sqlite") as kept:
        assert kept.execute("SELECT name FROM sqlite_master").fetchall() == [("thesis",)]
    kept.close()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"prompt": "openness:high", "strengths": [9.0]}, RecipeError),
        ({"prompt": "openness:high", "strengths": [1.0, 1.0]}, RecipeError),
    ],
)
def test_an_impossible_strength_is_refused_before_a_model_is_loaded(recipe, given, error, tmp_path):
    with pytest.raises(error):
        sweep(recipe(interventions=[{"label": "x", **given}]), tmp_path / "run")
    assert not (tmp_path / "run").exists()
