"""Tasks of lm-evaluation-harness: its own numbers of the written checkpoint, on the live model."""

from pathlib import Path

import numpy as np
import pytest
import torch

import personality_vector as pv
from personality_vector.data.tasks import read_task
from personality_vector.errors import DataError, NonFiniteError
from personality_vector.interventions.prompts import edited
from personality_vector.lab import EVERYDAY, builtin
from personality_vector.measures.tasks import OwnTask
from personality_vector.subject.harness import HarnessTasks
from personality_vector.subject.subject import Subject

pytest.importorskip("lm_eval", reason="needs the package lm-eval (`make extras` installs it)")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
ROOT = Path(__file__).parents[2]
LIMIT = 40
EVERY = HarnessTasks(("everyday",), ROOT / "eval" / "tasks", LIMIT)


@pytest.fixture(autouse=True)
def _in_the_lab(monkeypatch, tmp_path):
    """Start where the data of the shipped task is found, and keep what is cached out of home."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(ROOT)


@pytest.fixture
def subject(pico):
    return Subject.load(pico("llama"), device="cpu")


@pytest.fixture
def delta(pico, pico_tuned):
    return pv.Delta.between(pico("llama"), pico_tuned("llama"))


def harness(checkpoint, **given):
    """Return the results of the library, and what it found for each item by metric."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    found = simple_evaluate(
        "hf",
        model_args={"pretrained": str(checkpoint)},
        tasks=["everyday"],
        task_manager=TaskManager(include_path=str(ROOT / "eval/tasks"), include_defaults=False),
        limit=LIMIT,
        batch_size=8,
        device="cpu",
        apply_chat_template=True,
        bootstrap_iters=0,
        **given,
    )
    rows = found["samples"]["everyday"]
    return found["results"]["everyday"], {m: [row[m] for row in rows] for m in ("acc", "acc_norm")}


def by_metric(samples):
    assert {sample.task for sample in samples} == {"everyday"}
    assert {sample.chance for sample in samples} == {0.25}
    found = {}
    for sample in samples:
        found.setdefault(sample.metric, []).append(sample.value)
    return found


def test_a_live_edit_has_the_numbers_of_the_written_checkpoint(subject, delta, tmp_path):
    base = by_metric(EVERY.samples(subject, 8))
    before = {name: value.clone() for name, value in subject.model.state_dict().items()}
    with pv.WeightEdit(delta).applied(subject, 8.0) as live:
        found = by_metric(EVERY.samples(live, 8))
    assert all(torch.equal(subject.model.state_dict()[name], one) for name, one in before.items())
    written = pv.merge(subject_path(subject), [(delta, 8.0)], out=tmp_path / "merged").path
    results, expected = harness(written)
    assert found == expected != base
    for metric, values in found.items():
        assert np.mean(values) == results[f"{metric},none"]


def subject_path(subject):
    return subject.tokenizer.name_or_path


def test_a_prompt_acts_as_the_system_instruction_of_the_library(subject):
    def edit(chat):
        return [{"role": "system", "content": "I am quiet."}, *chat]

    _, expected = harness(subject_path(subject), system_instruction="I am quiet.")
    found = by_metric(EVERY.samples(edited(subject, edit), 8))
    assert found == expected != by_metric(EVERY.samples(subject, 8))


@pytest.mark.parametrize("positions", ["all", "response", "last 1 + response"])
def test_steering_acts_where_it_does_on_our_own_task(subject, positions):
    vector = pv.SteeringVector(
        {1: torch.arange(48.0).cos()}, "", None, "v", "response_mean", (1, 1)
    )
    steering = pv.ActivationSteering(vector, layers=[1], positions=positions)
    own = OwnTask("everyday", read_task(builtin(EVERYDAY))[:LIMIT])
    plain = [sample.value for sample in own.samples(subject, 8)]
    with steering.applied(subject, 2.0) as live:
        found = by_metric(EVERY.samples(live, 8))["acc"]
        assert found == [sample.value for sample in own.samples(live, 8)] != plain


def test_the_callers_random_numbers_are_untouched(subject):
    """Those of Python's random too, from which the type checks of these tests draw themselves."""
    numpy, now = np.random.get_state()[1], torch.random.get_rng_state()  # noqa: NPY002
    EVERY.samples(subject, 8)
    assert np.array_equal(numpy, np.random.get_state()[1])  # noqa: NPY002
    assert torch.equal(now, torch.random.get_rng_state())


def test_a_task_that_does_not_exist_is_refused_with_those_that_do(subject):
    with pytest.raises(DataError, match=r"has no task arc; it has everyday"):
        HarnessTasks(("arc",), EVERY.include).samples(subject, 8)


def test_a_broken_model_gives_no_number(subject):
    with torch.no_grad():
        subject.model.lm_head.weight[7] = torch.nan
    with pytest.raises(NonFiniteError, match="a likelihood of NaN"):
        EVERY.samples(subject, 8)
