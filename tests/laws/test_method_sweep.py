"""A sweep over merge methods: no checkpoint is written, and the bits are those of a merge."""

import pytest
import torch

import personality_vector as pv
from personality_vector.checkpoint import Checkpoint
from personality_vector.merging.methods import METHODS
from personality_vector.study.recipe import SweepRecipe, open_study
from personality_vector.subject.subject import Subject

SEED = 3


@pytest.fixture
def terms(pico_tuned):
    """Return two terms, one of which is stronger in late layers."""
    return [
        {"tuned": str(pico_tuned("llama", "bfloat16", 0)), "alpha": 0.7},
        {"tuned": str(pico_tuned("llama", "bfloat16", 1)), "alpha": [0.2, 1.1]},
    ]


def recipe_of(base, terms, method, strengths):
    data = {
        "base": str(base),
        "dtype": "bfloat16",
        "interventions": [{"label": method, "terms": terms, "method": method, "seed": SEED}],
        "strengths": strengths,
        "measures": [{"likelihood": {"traits": ["extraversion"], "limit": 2}}],
        "device": "cpu",
    }
    return SweepRecipe.parse(data, origin="test", folder=base)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_in_a_sweep_has_the_bits_of_its_merge(pico, terms, tmp_path, method):
    """Strength is lambda: live, the weights are those of a merge that was written with it."""
    base = pico("llama", "bfloat16")
    study = open_study(recipe_of(base, terms, method, [-0.5, 0.5, 1.5]))
    readings = study.run(tmp_path / "run").readings()
    assert readings["value"].nunique() == 4
    assert not list(tmp_path.rglob("*.safetensors"))
    summands = [(t["tuned"], tuple(a) if isinstance(a := t["alpha"], list) else a) for t in terms]
    written = pv.merge(
        base,
        summands,
        out=tmp_path / "merged",
        method=method,
        options={"lambda": 1.5},
        seed=SEED,
    )
    subject = Subject.load(base, dtype="bfloat16")
    merged = Checkpoint.open(written.path)
    with study.arms[0].at(0).applied(subject, 1.5) as edited:
        for name, parameter in edited.model.named_parameters():
            assert torch.equal(parameter, merged[name]), name
    assert written.realised == pytest.approx(edited.realised, abs=1e-9)
