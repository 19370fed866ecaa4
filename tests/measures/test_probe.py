import math
import statistics

import pytest
import torch
from personality_vector.measures.probe import LikelihoodProbe

from personality_vector.data.statements import Statement
from personality_vector.errors import DataError, NonFiniteError
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


def restated(tiny, text, prompt=None):
    tokens, log_probs = tiny.response_log_probs(prompt or question(ASKED), text)
    return statistics.fmean(
        log_probs[position, token].item() for position, token in enumerate(tokens)
    )


def measure(tiny, statements=STATEMENTS, **options):
    edit = options.pop("edit", None)
    probe = LikelihoodProbe(statements, ASKED, **options)
    return probe(tiny.model, tiny.tokenizer, edit) if edit else probe(tiny.model, tiny.tokenizer)


def test_the_value_is_that_of_a_loop_over_single_sequences(tiny):
    score = measure(tiny)["extraversion"]
    high = [restated(tiny, text) for text in HIGH]
    low = [restated(tiny, text) for text in LOW]
    assert score.high == pytest.approx(statistics.fmean(high), abs=1e-5)
    assert score.low == pytest.approx(statistics.fmean(low), abs=1e-5)
    assert score.value == pytest.approx(statistics.fmean(high) - statistics.fmean(low), abs=1e-5)
    assert (score.n_high, score.n_low) == (3, 2)
    error = math.sqrt(statistics.variance(high) / 3 + statistics.variance(low) / 2)
    assert score.standard_error == pytest.approx(error, abs=1e-5)


def test_every_trait_is_measured_on_its_own_statements(tiny):
    scores = measure(tiny)
    expected = restated(tiny, "I dream") - restated(tiny, "I do what I always did")
    assert scores["openness"].value == pytest.approx(expected, abs=1e-5)
    assert scores["openness"].standard_error is None
    assert set(scores) == {"extraversion", "openness"}


def test_swapping_the_poles_changes_the_sign_and_nothing_else(tiny):
    swapped = [Statement(s.trait, SWAPPED[s.level], s.text) for s in STATEMENTS]
    plain, turned = measure(tiny), measure(tiny, swapped)
    for trait in plain:
        assert turned[trait].value == -plain[trait].value
        assert turned[trait].standard_error == plain[trait].standard_error


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_do_not_matter(tiny, batch_size):
    batched = measure(tiny, batch_size=batch_size)["extraversion"].value
    assert batched == pytest.approx(measure(tiny)["extraversion"].value, abs=1e-6)


def test_the_system_message_and_the_edit_are_read(tiny):
    def edit(chat):
        assert chat[-1]["content"] == ASKED
        return [{"role": "system", "content": "You are bold."}, *chat]

    prompt = question(ASKED, system="You are bold.")
    expected = restated(tiny, HIGH[0], prompt) - restated(tiny, LOW[0], prompt)
    two = [STATEMENTS[1], STATEMENTS[0]]
    for options in ({"system": "You are bold."}, {"edit": edit}):
        assert measure(tiny, two, **options)["extraversion"].value == pytest.approx(
            expected, abs=1e-5
        )


def test_a_broken_model_gives_no_score(tiny):
    with torch.no_grad():
        tiny.model.lm_head.weight[7] = math.nan
    with pytest.raises(NonFiniteError, match="log-likelihood of nan"):
        measure(tiny)


def test_one_pole_alone_is_refused():
    with pytest.raises(DataError, match="openness:high but none of openness:low"):
        LikelihoodProbe([Statement("openness", "high", "I dream")], ASKED)


@pytest.mark.parametrize(("statements", "batch_size"), [([], 8), (STATEMENTS, 0)])
def test_nothing_to_measure_is_refused(statements, batch_size):
    with pytest.raises(DataError):
        LikelihoodProbe(statements, ASKED, batch_size=batch_size)
