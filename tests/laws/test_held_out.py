"""On a small real model the trait follows alpha, measured on statements held out from training."""

from pathlib import Path

import pytest

from personality_vector.finetuning.recipe import TrainRecipe
from personality_vector.finetuning.sft import train
from personality_vector.study.design import BASE
from personality_vector.study.recipe import SweepRecipe, open_study
from personality_vector.study.tables import correlation
from personality_vector.traits import Pole

ALPHAS = [round(0.2 * step, 1) for step in range(1, 11)]


@pytest.mark.slow
def test_the_probe_follows_alpha_crosses_the_base_and_extrapolates(shared, tmp_path):
    pole = "conscientiousness:low"
    trait, sign = Pole.parse(pole).trait, Pole.parse(pole).sign
    base, statements = str(shared / "models/persona-tiny"), str(shared / "data/big5_statements")
    recipe = {
        "base": base,
        "pole": pole,
        "data": {"source": statements, "limit": 160},
        "sft": {"learning_rate": 3e-4, "epochs": 2, "batch_size": 16, "scheduler": "constant"},
    }
    train(TrainRecipe.parse(recipe, origin="test", folder=Path.cwd()), tmp_path / "tuned")
    measured = {
        "base": base,
        "interventions": [{"label": pole, "tuned": str(tmp_path / "tuned")}],
        "strengths": [-1.0, *ALPHAS],
        "measures": [{"likelihood": {"traits": [trait], "statements": statements, "limit": 25}}],
    }
    kind = SweepRecipe.parse(measured, origin="test", folder=Path.cwd())
    run = open_study(kind).run(tmp_path / "sweep")
    probe = run.readings().query("measure == 'likelihood'")
    value = probe.set_index(["intervention", "strength"])["value"]
    found = correlation(ALPHAS, [float(value[pole, alpha]) for alpha in ALPHAS])
    assert sign * found["spearman"] >= 0.99
    assert sign * found["pearson"] >= 0.95
    assert sign * (value[pole, -1.0] - value[BASE, 0.0]) < 0
    assert sign * (value[pole, ALPHAS[-1]] - value[pole, ALPHAS[4]]) > 0
