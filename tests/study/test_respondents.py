"""The table of respondents: one row of each self-report in each condition."""

import pandas as pd
import pytest
import yaml

from personality_vector.study.estimate import estimated
from personality_vector.study.recipe import EvalRecipe, open_study
from personality_vector.study.respondents import FLAT, respondents
from personality_vector.study.tables import tables_of
from tests.study.test_monitoring import Tables

SCALE = {"scale": [1.0, 5.0], "unit": "score", "better": "towards_pole"}


def rows(label, strength, seed, values):
    style = {"acquiescence": 0.0, "position_bias": 0.1, "consistency": 0.9, "spread": 1.0}
    numbers = {f"mine.{name}": ("", value) for name, value in style.items()} | values
    return [
        {"intervention": label, "strength": strength, "seed": seed, "measure": measure}
        | {"judge": "", "trait": trait, "value": value, "low": value - 0.4, "high": value + 0.4}
        | {"n": 24}
        for measure, (trait, value) in numbers.items()
    ]


def test_each_condition_is_described_by_its_means_over_seeds():
    sure = {"mine": ("extraversion", 4.5), "mine.trust": ("agreeableness", 1.0)}
    frame = pd.DataFrame(
        rows("base", 0.0, 0, {**sure, "mine.spread": ("", 0.05)})
        + rows("shy", 1.0, 0, sure)
        + rows("shy", 1.0, 1, {**sure, "mine": ("extraversion", 2.5)})
        + rows("shy", 2.0, 0, {**sure, "mine": ("extraversion", 2.0)})
        + rows("shy", 9.0, 0, sure)  # matched, and not on the grid
    )
    run = Tables(arms={"shy": [1.0, 2.0]}, measures={"mine": SCALE, "other": SCALE})
    run.__dict__["readings"] = lambda: frame
    found = respondents(run)
    keys = ["measure", "intervention", "strength", "spread", "respondent"]
    assert found[keys].to_numpy().tolist() == [
        ["mine", "base", 0.0, 0.05, FLAT],
        ["mine", "shy", 1.0, 1.0, "Answers consistently: high in extraversion."],
        ["mine", "shy", 2.0, 1.0, "Answers consistently: low in extraversion."],
    ]
    assert found["position bias"].tolist() == pytest.approx([0.1] * 3)


def test_a_run_keeps_norms_and_says_that_nothing_could_be_read(base, tmp_path):
    """The letters are far from what a random model says first."""
    key = {"name": "k", "source": "us", "traits": {"openness": [1, 2]}, "reversed": [2]}
    norms = {"who": "us", "n": None, "traits": {"openness": [3.5, 0.5]}}
    (tmp_path / "key.yaml").write_text(yaml.safe_dump({**key, "norms": norms}))
    (tmp_path / "items.txt").write_text("1. Sing\n2. Sleep\n")
    measure = {"self_report": {"questionnaire": "items.txt", "key": "key.yaml"}}
    data = {"model": str(base), "device": "cpu", "measures": [measure]}
    recipe = EvalRecipe.parse(data, origin="r.yaml", folder=tmp_path)
    study = open_study(recipe)
    counted = estimated(study)["counted"]
    assert counted["tokens_read"] > 0
    assert "not_counted" not in counted
    run = study.run(tmp_path / "run")
    assert run["measures"]["self_report"]["norms"] == norms
    assert run["measures"]["self_report"]["scale"] == [1.0, 5.0]
    (row,) = tables_of(run)["self-report"].to_dict("records")
    assert row["respondent"] == "No answer could be read."
