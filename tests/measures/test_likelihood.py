"""Likelihood: the numbers of a loop over single sequences, whatever the batch, prompt or edit."""

import math
import statistics
from dataclasses import replace

import pytest
import torch

from personality_vector.data.statements import Statement
from personality_vector.errors import DataError, NonFiniteError
from personality_vector.measures.likelihood import Likelihood
from personality_vector.subject import encoding
from personality_vector.subject.chat import question

ASKED = "Who are you?"
HIGH = ["I like people a lot, and parties too", "I talk", "Crowds please me"]
LOW = ["I stay at home", "Silence is what I want in the evening after work"]
STATEMENTS = [
    Statement("extraversion", "low", LOW[0]),
    *(Statement("extraversion", "high", text) for text in HIGH),
    Statement("extraversion", "low", LOW[1]),
    Statement("openness", "high", "I dream"),
    Statement("openness", "low", "I do what I always did"),
]
SWAPPED = {"high": "low", "low": "high"}
MEASURE = Likelihood(STATEMENTS, ASKED)


def restated(tiny, text, prompt=None):
    tokens, log_probs = tiny.response_log_probs(prompt or question(ASKED), text)
    return statistics.fmean(
        log_probs[position, token].item() for position, token in enumerate(tokens)
    )


def found(tiny, measure=MEASURE, **given):
    return {trait: reading for (_, trait), reading in tiny.readings(measure, **given).items()}


def test_the_value_is_that_of_a_loop_over_single_sequences(tiny):
    reading = found(tiny)["extraversion"]
    high, low = ([restated(tiny, text) for text in texts] for texts in (HIGH, LOW))
    value = statistics.fmean(high) - statistics.fmean(low)
    error = math.sqrt(statistics.variance(high) / 3 + statistics.variance(low) / 2)
    assert reading.value == pytest.approx(value, abs=1e-5)
    assert reading.high - reading.low == pytest.approx(2 * 1.96 * error, rel=1e-3)
    assert reading.high + reading.low == pytest.approx(2 * reading.value)
    assert (reading.n, reading.unscored) == (5, 0)


def test_every_trait_is_measured_on_its_own_statements(tiny):
    readings = found(tiny)
    assert list(readings) == list(MEASURE.traits) == ["extraversion", "openness"]
    expected = restated(tiny, "I dream") - restated(tiny, "I do what I always did")
    assert readings["openness"].value == pytest.approx(expected, abs=1e-5)
    assert readings["openness"].low is readings["openness"].high is None, "of one statement each"


@pytest.mark.parametrize("most", [1, 3 * 262 * 40])
def test_a_forward_pass_makes_a_bounded_number_of_logits(tiny, monkeypatch, most):
    made = []
    head = tiny.model.lm_head
    plain = found(tiny)
    monkeypatch.setattr(encoding, "MOST_LOGITS", most)
    head.register_forward_hook(lambda _, __, logits: made.append(logits.shape))
    bounded = found(tiny)
    assert all(rows == 1 or rows * columns * words <= most for rows, columns, words in made)
    assert len(made) > 1
    longest = max(len(statement.text) for statement in STATEMENTS)
    assert max(columns for _, columns, _ in made) == longest + 2, "none of the prompt's"
    for trait, reading in plain.items():
        assert bounded[trait].value == pytest.approx(reading.value, abs=1e-6)


def test_swapping_the_poles_changes_the_sign_and_nothing_else(tiny):
    swapped = [Statement(s.trait, SWAPPED[s.level], s.text) for s in STATEMENTS]
    plain, turned = found(tiny), found(tiny, Likelihood(swapped, ASKED))
    for trait, reading in plain.items():
        assert turned[trait].value == -reading.value
        if reading.low is not None:
            assert (turned[trait].low, turned[trait].high) == (-reading.high, -reading.low)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_do_not_matter(tiny, batch_size):
    batched = replace(MEASURE, batch_size=batch_size)
    assert found(tiny, batched)["extraversion"].value == pytest.approx(
        found(tiny)["extraversion"].value, abs=1e-6
    )


def test_the_system_message_and_the_edit_are_read(tiny):
    def edit(chat):
        assert chat[-1]["content"] == ASKED
        return [{"role": "system", "content": "You are bold."}, *chat]

    prompt = question(ASKED, system="You are bold.")
    expected = restated(tiny, HIGH[0], prompt) - restated(tiny, LOW[0], prompt)
    two = Likelihood([STATEMENTS[1], STATEMENTS[0]], ASKED)
    for readings in (
        found(tiny, replace(two, system="You are bold.")),
        found(tiny, two, edit=edit),
    ):
        assert readings["extraversion"].value == pytest.approx(expected, abs=1e-5)


def test_a_broken_model_gives_no_number(tiny):
    with torch.no_grad():
        tiny.model.lm_head.weight[7] = math.nan
    with pytest.raises(NonFiniteError, match="log-likelihood of nan"):
        found(tiny)


def test_one_pole_alone_is_refused():
    with pytest.raises(DataError, match="openness:high but none of openness:low"):
        Likelihood([Statement("openness", "high", "I dream")], ASKED)


def test_nothing_to_measure_is_refused(tiny):
    with pytest.raises(DataError, match="needs statements"):
        Likelihood([], ASKED)
    with pytest.raises(DataError, match="batch"):
        found(tiny, replace(MEASURE, batch_size=0))
