"""Coherence: the base is as coherent as itself, and each number sees what it is there to see."""

import math
from dataclasses import replace

import pytest

from personality_vector.data.personas import Instrument, Item
from personality_vector.data.texts import distinct_n
from personality_vector.errors import DataError
from personality_vector.lab import builtin
from personality_vector.measures.coherence import Coherence
from personality_vector.measures.spec import Asking
from personality_vector.subject.chat import answered, question
from personality_vector.subject.models import load_model, load_tokenizer
from personality_vector.subject.spec import Sampling
from personality_vector.subject.subject import Subject

ITEMS = ("What kind of person are you?", "Tell me something about yourself.")
SALAD = "party of a quiet the friends loud never I with idea"


@pytest.fixture(scope="module")
def base():
    path = builtin("builtin:demo")
    return Subject(load_model(path), load_tokenizer(path), memory={})


@pytest.fixture(scope="module")
def measure(base):
    items = tuple(Item(id=f"item-{i}", text=text) for i, text in enumerate(ITEMS))
    instrument = Instrument(name="two", version="1", items=items)
    asking = Asking(instrument, Sampling(max_new_tokens=20), samples=3)
    return Coherence(asking, seed=5).prepare(base)


def found(measure, base, replies):
    """Return the readings of given replies, by the last part of their name."""
    chats = [answered(question(ITEMS[0]), reply) for reply in replies]
    readings = measure.finish(base, chats).readings
    return {reading.measure.partition(".")[2]: reading for reading in readings}


def own(measure, base):
    return [chat[-1]["content"] for chat in measure.collect(base, 5)]


def test_the_base_is_as_coherent_as_itself(measure, base):
    readings = measure.finish(base, measure.collect(base, 5)).readings
    assert [(r.measure, r.value) for r in readings] == [
        ("coherence.fluency", 1.0),
        ("coherence.variety", 1.0),
    ]
    assert {(r.n, r.unscored) for r in readings} == {(6, 0)}


def test_the_numbers_are_the_ratios_that_they_are_said_to_be(measure, base):
    replies = [SALAD, "I am quiet. I am quiet. I am quiet."]
    chats = [answered(question(ITEMS[0]), reply) for reply in replies]
    reference = measure.collect(base, 5)
    mine, theirs = (float(base.log_likelihood(some).double().mean()) for some in (chats, reference))
    numbers = found(measure, base, replies)
    assert numbers["fluency"].value == pytest.approx(math.exp(mine) / math.exp(theirs))
    ratio = distinct_n(replies, 2) / distinct_n(own(measure, base), 2)
    assert numbers["variety"].value == pytest.approx(min(1.0, ratio))


def test_word_salad_is_varied_and_a_loop_is_not(measure, base):
    salad = found(measure, base, [SALAD])
    loop = found(measure, base, ["I am quiet. " * 8])
    assert salad["fluency"].value < 0.5
    assert salad["variety"].value == 1.0
    assert loop["variety"].value < 0.5
    assert loop["fluency"].value > salad["fluency"].value


def test_what_nobody_said_is_unscored(measure, base):
    silent = found(measure, base, ["", "  "])
    assert {(r.value, r.n, r.unscored) for r in silent.values()} == {(None, 0, 2)}
    half = found(measure, base, ["", "I am quiet and calm."])
    assert half["fluency"].value == found(measure, base, ["I am quiet and calm."])["fluency"].value
    assert (half["fluency"].n, half["fluency"].unscored) == (1, 1)


def test_a_base_that_says_nothing_is_refused(base):
    short = Asking(
        Instrument(name="one", version="1", items=(Item(id="one", text="?"),)),
        Sampling(max_new_tokens=1),
    )
    with pytest.raises(DataError, match="never replies with two words or more"):
        Coherence(short).prepare(base)


def test_it_has_to_be_prepared(measure, base):
    with pytest.raises(DataError, match="prepare"):
        replace(measure, reference=None).finish(base, [])


def test_the_identity_is_what_the_numbers_depend_on(measure):
    assert measure.identity() == replace(measure, batch_size=1, reference=None).identity()
    assert measure.identity() != replace(measure, seed=6).identity()
