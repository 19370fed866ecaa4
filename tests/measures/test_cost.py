"""Cost: means over replies that were drawn once, a price by hand, and memory that was used."""

import resource
from pathlib import Path

import pytest

from personality_vector.data.personas import Instrument, Item
from personality_vector.errors import RecipeError
from personality_vector.measures import cost
from personality_vector.measures.cost import Cost, CostSpec
from personality_vector.measures.interview import Interview
from personality_vector.measures.spec import Asking
from personality_vector.subject import batch
from personality_vector.subject.spec import Sampling

ITEMS = tuple(Item(id=f"q{i}", text=f"Question {i}{'!' * i}") for i in range(3))
ASKING = Asking(
    Instrument(name="three", version="1", items=ITEMS), Sampling(max_new_tokens=5), samples=2
)


def found(measure, subject):
    readings = measure.finish(subject, measure.collect(subject, 0)).readings
    return {reading.measure.removeprefix("cost."): reading for reading in readings}


def test_the_replies_of_the_interview_are_what_is_paid_for(tiny, monkeypatch):
    drawn = []
    real = batch.generate_batch

    def counted(subject, chats, *given):
        drawn.extend(chats)
        return real(subject, chats, *given)

    monkeypatch.setattr(batch, "generate_batch", counted)
    subject = tiny.subject(memory={})
    answers = Interview(ASKING, ()).collect(subject, 0)
    readings = found(Cost(ASKING, 2.0, 10.0), subject)
    assert len(drawn) == ASKING.samples * len(ITEMS), "nothing is generated again"
    for number in ("tokens_in", "tokens_out", "seconds"):
        values = [getattr(answer, number) for answer in answers]
        assert readings[number].value == pytest.approx(sum(values) / len(values))
        assert readings[number].n == 6
    # one token a byte: <user>, the text, <end>, <assistant>
    texts = [len(item.text) + 3 for item in ITEMS]
    assert readings["tokens_in"].value == sum(texts) / 3
    dollars = sum(2.0 * a.tokens_in + 10.0 * a.tokens_out for a in answers) / 1e6 / 6
    assert readings["price"].value == pytest.approx(10_000 * dollars)
    units = {"seconds": "seconds", "price": "for 10,000 queries", "memory": "GB"}
    assert {name: reading.unit for name, reading in readings.items() if reading.unit} == units


def test_a_prompt_is_paid_for_too(tiny):
    def edit(chat):
        return [{"role": "system", "content": "Be bold."}, *chat]

    before, after = (
        found(Cost(ASKING), tiny.subject()),
        found(Cost(ASKING), tiny.subject(edit=edit)),
    )
    assert after["tokens_in"].value - before["tokens_in"].value == len("Be bold.") + 2
    assert "price" not in before


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="Linux says what is resident")
def test_the_peak_of_memory_holds_what_was_resident_and_does_not_fall(tiny, monkeypatch, tmp_path):
    held = b"x" * 200_000_000
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    peak = cost._peak_bytes(tiny.model)
    assert len(held) < resident <= peak * 1.01
    del held
    assert cost._peak_bytes(tiny.model) >= peak * 0.99, "the kernel counts in coarse steps"
    monkeypatch.setattr(cost, "_STATUS", tmp_path / "nowhere")
    assert cost._peak_bytes(tiny.model) >= peak * 0.99, "other systems say it in kilobytes, too"


@pytest.mark.parametrize("given", [{"price_in": 1.0}, {"price_out": 1.0}])
def test_one_price_alone_is_refused(given, tmp_path):
    with pytest.raises(RecipeError, match="give price_in and price_out together"):
        CostSpec.parse(given, origin="r.yaml", folder=tmp_path)
