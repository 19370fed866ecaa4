"""A sweep by recipe: which cells it measures, how it resumes, and that the base is left alone."""

import json
import shutil
import sqlite3
from functools import reduce
from itertools import product

import pandas as pd
import pytest
import torch

from personality_vector.errors import DataError, PersonalityVectorError, RecipeError
from personality_vector.manifest import MANIFEST
from personality_vector.study.database import MEASURED, mixed
from personality_vector.study.design import BASE, Point
from personality_vector.study.recipe import EvalRecipe, open_study
from personality_vector.study.run import Run
from personality_vector.study.store import FILE, Store
from personality_vector.study.tables import (
    by_strength,
    correlation,
    dose_response,
    side_effects,
    tables_of,
    unscored,
)
from personality_vector.study.worker import Worker

TRAITS = ("extraversion", "openness")
STRENGTHS = (-1, 1, 2)
CELLS = [(BASE, 0.0), *product(("weights", "prompt"), map(float, STRENGTHS))]
GUARDS = "words distinct_2 repetition compression first_person refusals disclaimers other_language"
SIDES = {f"guards.{name}" for name in (*GUARDS.split(), "verbatim")}
DISTANCES = {f"divergence.{n}" for n in ("mean", "p95", "max", "base_replies")}
SIDES |= DISTANCES | {"divergence.perplexity"}


@pytest.fixture(scope="module")
def run(recipe, tmp_path_factory):
    """Return the run of a sweep, measured once."""
    folder = tmp_path_factory.mktemp("runs") / "done"
    return open_study(recipe(strengths=list(map(float, STRENGTHS)))).run(folder)


@pytest.fixture
def points(monkeypatch):
    """Return the list that every point measured from now on is noted in, with its measures."""
    noted = []
    real = Worker._found

    def found(self, cells, point, memory):
        noted.append((point, sorted(measure.name for measure in cells.values())))
        return real(self, cells, point, memory)

    monkeypatch.setattr(Worker, "_found", found)
    return noted


def test_there_is_every_number_of_the_base_and_of_each_strength(run):
    frame = run.readings()
    kinds = {(name, "", "") for name in SIDES}
    kinds |= {("likelihood", "", trait) for trait in TRAITS}
    kinds |= {("interview", "classifier", trait) for trait in TRAITS}
    cells = frame.groupby(["intervention", "strength"], sort=False)
    assert [key for key, _ in cells] == CELLS
    for (label, _), cell in cells:
        found = set(zip(cell["measure"], cell["judge"], cell["trait"], strict=True))
        extra = {("guards.realised", "", "")} if label == "weights" else set()
        assert found == kinds | extra


def test_every_statement_is_kept_and_a_likelihood_is_their_mean(run):
    key = ["intervention", "strength", "seed", "measure", "trait"]
    means = run.observations().groupby(key)["value"].mean()
    read = run.readings().query("measure == 'likelihood'").set_index(key)["value"]
    assert len(read) == len(CELLS) * len(TRAITS)
    assert means.to_dict() == pytest.approx(read.to_dict())


def test_results_of_a_version_without_observations_can_be_added_to(run, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(run.folder, folder)
    with sqlite3.connect(folder / FILE) as file:
        file.execute("DROP TABLE observations")
        kept = (
            row
            for t in MEASURED[:-1]
            for row in map((t,).__add__, file.execute(f"SELECT * FROM {t}"))
        )
        digest = reduce(lambda found, row: mixed(found, *row), kept, "0" * 32)
        file.execute("UPDATE run SET value = ? WHERE key = 'digest'", (digest,))
    assert Run(folder).observations().empty
    assert Run(folder).readings().equals(run.readings())


def test_every_answer_is_kept_with_its_score_or_the_reason_for_none(run):
    answers = run.answers()
    assert len(answers) == len(CELLS) * 2 * len(TRAITS)
    missing = answers[answers["score"].isna()]
    assert (missing["reason"] != "").all()
    judged = run.readings().query("judge == 'classifier'")
    assert judged["unscored"].sum() == len(missing)
    assert judged["n"].sum() == len(answers) - len(missing)
    key = ["intervention", "strength", "trait"]
    means = answers.groupby(key)["score"].mean()  # the unscored do not move it
    assert judged.set_index(key)["value"].to_dict() == pytest.approx(means.to_dict(), nan_ok=True)
    assert unscored(run)["unscored"].sum() == len(missing)


def test_the_base_has_no_divergence_from_itself(run):
    frame = run.readings().query("measure in @DISTANCES")
    assert set(frame.query("intervention == 'base'")["value"]) == {0.0}
    assert frame.query("intervention == 'weights'")["value"].min() > 1e-6


def test_side_measures_ask_nothing_again(recipe, measures, tmp_path, monkeypatch):
    """All measures of a cell that ask what the interview asks share its replies."""
    from personality_vector.subject import batch

    drawn = []
    real = batch.generate_batch

    def noted(subject, chats, *given):
        drawn.extend(chats)
        return real(subject, chats, *given)

    monkeypatch.setattr(batch, "generate_batch", noted)
    asking = [*measures(*TRAITS), "cost", "activations"]
    run = open_study(recipe(strengths=[1.0], measures=asking)).run(tmp_path / "run")
    assert len(drawn) == 3 * 2, "two samples of the base, of the weights and of the prompt"
    found = run.readings().query("measure in ['divergence.mean', 'cost.seconds']")
    assert set(found.query("measure == 'cost.seconds'")["n"]) == {2}
    assert len(found) == 3 * 2


def test_a_finished_sweep_loads_no_model(recipe, run, points, monkeypatch):
    def refuse(*_, **__):
        pytest.fail("a model was loaded")

    monkeypatch.setattr("personality_vector.subject.subject.load_model", refuse)
    before = run.readings()
    again = open_study(recipe(strengths=list(map(float, STRENGTHS)))).run(run.folder)
    assert points == []
    pd.testing.assert_frame_equal(again.readings(), before)


def test_an_interrupted_sweep_measures_what_is_missing_and_gets_the_same(
    recipe, run, tmp_path, points, monkeypatch
):
    real = Store.write

    def killed(self, cell, *rest):
        if len(points) == 5:
            raise KeyboardInterrupt
        return real(self, cell, *rest)

    study = open_study(recipe(strengths=list(map(float, STRENGTHS))))
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            study.run(tmp_path / "run")
    points.clear()
    resumed = study.run(tmp_path / "run")
    assert [point for point, _ in points] == [Point("prompt", float(s), 0) for s in STRENGTHS]
    pd.testing.assert_frame_equal(resumed.readings(), run.readings())
    pd.testing.assert_frame_equal(resumed.answers(), run.answers())


def test_what_is_added_to_a_recipe_is_all_that_is_measured(recipe, measures, tmp_path, points):
    """By recipe: a strength, a seed, an instrument, another judge, an option of one measure."""

    def fresh(**changes):
        points.clear()
        open_study(recipe(**{"strengths": [1.0], **changes})).run(tmp_path / "run")
        return [(point.label, point.strength, point.seed, *names) for point, names in points]

    assert len(fresh()) == 3
    assert [row[:3] for row in fresh(strengths=[1.0, 2.0])] == [
        ("weights", 2.0, 0),
        ("prompt", 2.0, 0),
    ]
    assert {row[2] for row in fresh(seeds=[0, 1])} == {1}
    asked = {"traits": ["openness"], "question": "Who?", "name": "again"}
    more = [*measures(*TRAITS), {"interview": asked}]
    assert {row[3:] for row in fresh(measures=more)} == {("again",)}
    own = {"statements": "statements.jsonl", "neutral": None}
    judges = [{"classifier": {"statements": "statements.jsonl"}}, {"classifier": own}]
    with pytest.raises(RecipeError, match="two judges of interview are called classifier"):
        fresh(measures=[{"interview": {"traits": ["openness"], "judges": judges}}])
    judges[0]["classifier"]["name"] = "ours"
    with pytest.raises(RecipeError, match="two judges that differ are called classifier"):
        fresh(measures=[*measures(*TRAITS), {"interview": {**asked, "judges": judges}}])
    judges[1] = {"classifier": {**own, "name": "bold"}}
    both = [*measures(*TRAITS), {"interview": {**asked, "judges": judges}}]
    assert fresh(measures=both, strengths=[1.0, 2.0], seeds=[0, 1])[0][3:] == ("again",)
    named = set(Run(tmp_path / "run").readings()["judge"])
    assert named == {"", "classifier", "ours", "bold"}
    longer = [{"divergence": {"max_tokens": 7, "question": "Who?"}}]
    assert {row[3:] for row in fresh(measures=longer)} == {("divergence",)}
    assert fresh() == []


def test_temperature_one_for_one_arm_alone(recipe, tmp_path):
    arms = [
        {"label": "hot", "decoding": {"temperature": 1.7}, "strengths": [1.0]},
        {"label": "greedy", "decoding": {"temperature": 0.0}, "strengths": [1.0]},
    ]
    run = open_study(recipe(interventions=arms)).run(tmp_path / "run")
    said = (
        run.answers().drop_duplicates(["intervention", "sample"]).groupby("intervention")["reply"]
    )
    replies = {label: list(texts) for label, texts in said}
    assert replies["greedy"][0] == replies["greedy"][1]
    assert replies["hot"] != replies["base"] != replies["greedy"]
    value = run.readings().query("measure == 'likelihood'").groupby("intervention")["value"]
    assert value.first().nunique() == 1, "decoding changes no likelihood"


def test_the_model_is_bit_for_bit_as_it_was(recipe, tmp_path):
    study = open_study(recipe(strengths=[1.0]))
    with Store.open(tmp_path / FILE, create=True) as store:
        worker = Worker(study, store)
        before = {name: value.clone() for name, value in worker.base.model.state_dict().items()}
        worker.work()
        after = worker.base.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_seed_in_a_path_is_one_label_with_an_identity_for_each_seed(
    recipe, tmp_path, pico_tuned, points
):
    for seed in (0, 1):
        (tmp_path / f"tuned-{seed}").symlink_to(pico_tuned("llama", seed=seed))
    arm = {"label": "trained", "tuned": str(tmp_path / "tuned-{seed}")}
    study = open_study(recipe(interventions=[arm], strengths=[1.0], seeds=[0, 1]))
    frame = study.run(tmp_path / "run").readings().query("measure == 'likelihood'")
    value = frame.set_index(["intervention", "seed", "trait"])["value"]
    assert value["trained", 0, "openness"] != value["trained", 1, "openness"]
    assert value["base", 0, "openness"] == value["base", 1, "openness"]
    (tmp_path / "tuned-1").unlink()
    (tmp_path / "tuned-1").symlink_to(pico_tuned("llama", seed=2))
    points.clear()
    open_study(recipe(interventions=[arm], strengths=[1.0], seeds=[0, 1])).run(tmp_path / "run")
    assert [point for point, _ in points] == [Point("trained", 1.0, 1)]


def test_a_pole_in_a_path_is_one_intervention_for_each_pole(recipe, tmp_path, pico_tuned):
    poles = ["openness:high", "extraversion:low"]
    for seed, pole in enumerate(poles):
        (tmp_path / pole.replace(":", "-")).symlink_to(pico_tuned("llama", seed=seed))
    arm = {"tuned": str(tmp_path / "{trait}-{level}"), "poles": poles, "strengths": [1.0]}
    study = open_study(recipe(interventions=[arm]))
    assert [arm.label for arm in study.arms] == ["openness:high", "extraversion:low"]
    with pytest.raises(PersonalityVectorError, match="openness-low: no such"):
        open_study(recipe(interventions=[{"tuned": str(tmp_path / "{trait}-{level}")}]))


def test_a_measure_whose_items_are_all_unscored_shows(recipe, tmp_path):
    """The answers of a random model to nothing are not words."""
    interview = {
        "traits": ["openness"],
        "generation": {"max_new_tokens": 1, "temperature": 0.0},
        "judges": [{"classifier": {"statements": "statements.jsonl"}}],
    }
    run = open_study(recipe(measures=[{"interview": interview}], strengths=[1.0])).run(tmp_path)
    frame = run.readings()
    assert frame["value"].isna().all()
    assert frame["unscored"].tolist() == [12] * 3, "two questions for each of six facets"
    assert unscored(run)["unscored"].tolist() == [36]
    run.export()
    assert ",12\n" in (tmp_path / "readings.csv").read_text()


def test_an_evaluation_is_the_base_alone(recipe, run, tmp_path, inputs):
    data = json.loads(recipe().model_dump_json(exclude={"base", "interventions", "strengths"}))
    one = EvalRecipe.parse({**data, "model": recipe().base}, origin="test", folder=inputs)
    found = open_study(one).run(tmp_path / "run")
    of_sweep = run.readings().query("intervention == 'base'")
    pd.testing.assert_frame_equal(found.readings(), of_sweep.reset_index(drop=True))
    assert len(tables_of(found)["measures"]) == len(of_sweep)
    found.write_manifest("eval")
    manifest = json.loads((tmp_path / "run" / MANIFEST).read_text())
    assert (manifest["kind"], manifest["seeds"]) == ("eval", [0])
    assert FILE in manifest["files"]


def test_each_strength_has_a_row_with_every_number_of_a_trait(run):
    table = by_strength(run)
    assert list(zip(table["intervention"], table["strength"], strict=True)) == CELLS
    keys = ["intervention", "strength", "trait", "measure"]
    values = run.readings().set_index(keys)["value"]
    names = {"likelihood": "likelihood", "interview": "interview by classifier"}
    for row in table.to_dict("records"):
        for trait, (measure, name) in product(TRAITS, names.items()):
            key = (row["intervention"], row["strength"], trait, measure)
            assert row[f"{trait} {name}"] == pytest.approx(values[key], abs=0, nan_ok=True)


def test_dose_response_follows_the_measured_values(run):
    table = dose_response(run).set_index(["intervention", "trait", "measure"])
    expected = product(("prompt", "weights"), TRAITS, ("likelihood", "interview"))
    assert set(table.index) == set(expected)
    rows = run.readings().query(
        "intervention == 'weights' and trait == 'openness' and measure == 'likelihood'"
    )
    row = table.loc[("weights", "openness", "likelihood")]
    assert row["pearson"] == pytest.approx(rows["strength"].corr(rows["value"]))
    assert row["n"] == len(STRENGTHS)
    assert len(side_effects(run)) == len(CELLS)


def test_a_correlation_is_undefined_without_enough_points():
    alphas = [1.0, 2.0, 3.0, 4.0]
    assert correlation(alphas, [2.0, 4.0, 6.0, 8.0])["slope"] == pytest.approx(2.0)
    mixed = correlation(alphas, [1.0, 3.0, 2.0, 4.0])
    assert mixed["spearman"] == pytest.approx(0.8)
    assert mixed["ci_low"] < mixed["pearson"] < mixed["ci_high"]
    for strengths, values in ((alphas[:2], alphas[:2]), (alphas, [5.0] * 4), ([], [])):
        assert all(value != value for value in correlation(strengths, values).values())


def test_another_base_dtype_or_tokenizer_is_another_identity(recipe, tmp_path, pico):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(pico("llama"), copy)

    def identity(**changes):
        return open_study(
            recipe(interventions=[{"label": "p", "prompt": "openness:low"}], **changes)
        ).base_identity

    found = identity()
    assert identity(base=str(copy)) == found, "the content counts, not the path"
    assert identity(dtype="bfloat16") != found
    for name in ("tokenizer.json", "config.json", "chat_template.jinja"):
        file = copy / name
        content = file.read_bytes()
        file.write_bytes(content + b" ")
        assert identity(base=str(copy)) != found, name
        file.write_bytes(content)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"measures": [{"likelihood": {"traits": ["humour"]}}]}, DataError, "humour:high"),
        ({"measures": [{"interview": {}}]}, RecipeError, "needs traits to rate the answers for"),
        (
            {"measures": [{"interview": {"traits": ["humour"], "judges": ["classifier"]}}]},
            DataError,
            "humour",
        ),
        (
            {"interventions": [{"label": "x", "prompt": "openness:high", "strengths": [0.5]}]},
            RecipeError,
            "^x: ",
        ),
        (
            {"interventions": [{"label": "x", "prompt": "openness:high", "vector": "vector"}]},
            RecipeError,
            "keys of two kinds, vector and prompt",
        ),
        ({"strengths": None}, RecipeError, "weights has no strengths"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_loaded(
    recipe, tmp_path, monkeypatch, changes, error, says
):
    def refuse(*_, **__):
        pytest.fail("a model was loaded")

    monkeypatch.setattr("personality_vector.subject.subject.load_model", refuse)
    with pytest.raises(error, match=says):
        open_study(recipe(**{"strengths": [1.0], **changes})).run(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_fine_tune_of_the_statements_that_measure_it_is_refused(
    recipe, inputs, tmp_path, pico_tuned
):
    tuned = tmp_path / "tuned"
    tuned.mkdir()
    for file in pico_tuned("llama").iterdir():
        (tuned / file.name).symlink_to(file)
    data = {"format": "statements", "source": str(inputs / "statements.jsonl"), "part": "all"}
    manifest = {"kind": "train", "recipe": {"data": {**data, "held_out": 0.2}}}
    (tuned / MANIFEST).write_text(json.dumps(manifest))
    terms = [{"label": "w", "terms": [{"tuned": str(tuned), "alpha": 1.0}]}]
    for arms in ([{"label": "w", "tuned": str(tuned)}], terms):
        with pytest.raises(DataError, match="would measure it on its own training text"):
            open_study(recipe(interventions=arms, strengths=[1.0]))


def test_a_run_has_what_its_folder_holds(run):
    assert run["seeds"] == [0]
    assert set(run["measures"]) == {"likelihood", "interview", "divergence", "guards"}
    assert run.cells()["finished"].all()
    with pytest.raises(PersonalityVectorError, match="there is no results file"):
        Run(run.folder / "nowhere")
