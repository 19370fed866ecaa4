"""Creativity in a study: replies that measures share, and a judge that compares all answers."""

import json
from collections import Counter
from pathlib import Path

import pytest

from personality_vector.data.ideas import CRITERIA
from personality_vector.errors import RecipeError
from personality_vector.judges.infrequency import InfrequencyJudge
from personality_vector.study.estimate import estimated
from personality_vector.study.judging import judge_run
from personality_vector.study.recipe import EvalRecipe, SweepRecipe, open_study
from personality_vector.study.tables import tables_of
from personality_vector.traits import BIG_FIVE
from tests.billy import ARMS as BILLYS
from tests.billy import shrunk
from tests.fake_endpoint import likely, serving

ROLES = ["a futurist", "a cook"]
ARMS = [
    {"label": "roles", "roles": ROLES},
    {"label": "discussion", "discussion": {"roles": ROLES, "rounds": 2}},
]
SHORT = {"max_new_tokens": 16, "temperature": 1.0, "samples": 2}
PRICES = {"price_in": 1.0, "price_out": 2.0}


@pytest.fixture
def opened(tmp_path):
    """Return ``opened(*arms, **options)``: a study of creativity on the embedded model."""
    task = {"name": "mine", "version": "1", "request": "Uses of {item}?", "items": ["tea", "art"]}
    (tmp_path / "mine.yaml").write_text(json.dumps(task))

    def make(*arms, judges=("infrequency",), **more):
        asked = {"tasks": ["mine.yaml"], "generation": SHORT, "judges": list(judges)}
        data = {"base": "builtin:demo", "interventions": list(arms), "strengths": [1.0]}
        data |= {"measures": [{"creativity": asked}, {"cost": PRICES}], **more}
        return open_study(SweepRecipe.parse(data, origin="r.yaml", folder=tmp_path))

    return make


def scores_of(run):
    found = run.answers().query("judge == 'infrequency'")
    keys = ["intervention", "seed", "item", "sample"]
    return found.set_index(keys)["score"].sort_index().round(9).to_dict()


def test_all_arms_stand_side_by_side_and_cost_what_their_answers_did(opened, tmp_path):
    run = opened(*ARMS).run(tmp_path / "run")
    tables = tables_of(run)
    originality = tables["by strength"].set_index("intervention")
    assert list(originality.index) == ["base", "roles", "discussion"]
    assert list(originality.columns)[1:] == ["originality creativity by infrequency"]
    costs = tables["side effects"].set_index("intervention")
    assert set(costs.columns) >= {"fluency", "tokens_in", "tokens_out", "seconds", "price"}
    with run.opened() as store:
        spent = store.rows(
            "SELECT p.label, AVG(a.tokens_in), AVG(a.tokens_out), AVG(a.seconds) FROM planned p "
            "JOIN cells c ON c.intervention = p.intervention AND c.measure = p.measure "
            "AND c.strength = p.strength JOIN answers a ON a.cell = c.id GROUP BY p.label"
        )
    for label, tokens_in, tokens_out, seconds in spent:
        row = costs.loc[label]
        assert row["tokens_in"] == pytest.approx(tokens_in)
        assert row["tokens_out"] == pytest.approx(tokens_out)
        assert row["seconds"] == pytest.approx(seconds), "the same replies, not drawn again"
        assert row["price"] == pytest.approx((tokens_in + 2 * tokens_out) / 100)
    assert costs.loc["discussion", "tokens_in"] > 5 * costs.loc["base", "tokens_in"]


def test_who_compares_all_answers_rates_again_when_there_are_more(opened, tmp_path):
    folder = tmp_path / "grown"
    few = scores_of(opened(*ARMS[:1]).run(folder))
    grown = scores_of(opened(*ARMS, seeds=[0, 1]).run(folder))
    whole = scores_of(opened(*ARMS, seeds=[0, 1]).run(tmp_path / "whole"))
    assert grown == whole
    assert len(few) == 2 * 2 * 2
    assert len(grown) == 3 * 2 * 2 * 2
    assert all(value is not None and 0 <= value <= 1 for value in grown.values())
    again = scores_of(opened(*ARMS[:1]).run(folder))
    assert again == few


def test_who_compares_all_answers_can_come_later(opened, tmp_path):
    run = opened(*ARMS[:1], judges=()).run(tmp_path / "run")
    assert judge_run(run.folder, InfrequencyJudge().open()) == 2
    assert scores_of(run) == scores_of(opened(*ARMS[:1]).run(tmp_path / "other"))


def test_a_run_without_ideas_is_not_judged_by_who_rates_ideas(opened, tmp_path):
    interview = {"traits": ["openness"], "generation": SHORT}
    measures = [{"interview": interview}]
    run = opened(*ARMS[:1], measures=measures).run(tmp_path / "run")
    with pytest.raises(RecipeError, match="no answers that infrequency rates; it rates for orig"):
        judge_run(run.folder, InfrequencyJudge().open())


def measured(*measures):
    data = {"model": "builtin:demo", "measures": list(measures)}
    return EvalRecipe.parse(data, origin="r.yaml", folder=Path()).measures


def test_measures_without_questions_ask_for_the_ideas():
    creativity, cost, guards = measured({"creativity": {"limit": 2}}, {"cost": PRICES}, "guards")
    for other in (cost, guards):
        assert other.tasks == creativity.tasks
        assert other.limit == 2
        assert other.generation == creativity.generation
        assert other.open().asking == creativity.open().asking
    _, few = measured("creativity", {"guards": {"limit": 1}})
    assert (few.tasks, few.limit) == (creativity.tasks, 1), "a limit keeps what is shared"
    _, asked = measured("creativity", {"cost": {"question": "Who?", "limit": 1}})
    assert asked.tasks is None
    own, _, first = measured({"interview": {"traits": ["openness"]}}, "creativity", "guards")
    assert (first.tasks, first.about) == (None, own.traits)


def test_the_first_items_are_those_about_each_trait_or_of_each_task():
    tasks, plain, facets = measured(
        {"cost": {"tasks": ["builtin:eval/tasks/creativity/uses.yaml"], "limit": 3}},
        {"guards": {"instrument": "builtin:eval/instruments/everyday.yaml", "limit": 3}},
        {"coherence": {"instrument": "builtin:eval/instruments/facets.yaml", "limit": 2}},
    )
    asked = [one.open().asking.instrument.items for one in (tasks, plain, facets)]
    assert [len(items) for items in asked] == [3, 3, 2 * len(BIG_FIVE)]
    assert Counter(item.trait for item in asked[2]) == dict.fromkeys(BIG_FIVE, 2)
    with pytest.raises(RecipeError, match="not both instrument and tasks"):
        measured({"cost": {"tasks": ["a"], "instrument": "b"}})


def test_billys_design_runs_as_it_ships_and_a_discussion_costs_what_it_says(
    pico, pico_tuned, tmp_path, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with serving(lambda _: likely({"4": 0.5, "3": 0.5})) as fake:
        endpoint = {"endpoint": {"model": "m", "base_url": fake.base_url, "scale": "1-5"}}
        judges = ["infrequency", "embedding", endpoint]
        recipe = shrunk(tmp_path, pico, pico_tuned, judges)
        run = open_study(recipe).run(tmp_path / "run")
    tables = tables_of(run)
    rated = tables["by strength"].set_index("intervention")
    assert list(rated.index) == BILLYS
    assert {*rated.columns[1:]} == {
        *(f"originality creativity by {judge}" for judge in ("infrequency", "embedding")),
        *(f"{name} creativity by endpoint m" for name in CRITERIA),
    }
    assert (rated.filter(like="endpoint") == 3.5).all(axis=None)
    costs = tables["side effects"].set_index("intervention")
    assert list(costs.index) == BILLYS
    spent = costs["tokens_in"] + costs["tokens_out"]
    assert spent["discussion"] > 10 * spent["base"]
    assert spent["roles"] < 10 * spent["base"]
    assert costs.loc[["one vector", "fused vectors", "merge"], "tokens_in"].nunique() == 1


def test_a_plan_counts_every_call_of_a_discussion(opened):
    counted = [estimated(opened(arm))["counted"]["replies"] for arm in ARMS]
    assert counted == [4 + 4, 4 + 5 * 4]
