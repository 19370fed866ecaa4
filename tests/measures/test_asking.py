"""Asking: every item in every sample, from random numbers that interventions share."""

import math
from dataclasses import replace

import pytest
import torch

from personality_vector.data.personas import Instrument, Item
from personality_vector.errors import DataError, NonFiniteError
from personality_vector.lab import builtin
from personality_vector.measures.interview import Interview, InterviewSpec
from personality_vector.measures.spec import Asking
from personality_vector.recipes.reading import read_recipe
from personality_vector.subject import batch
from personality_vector.subject.draws import sample_seed
from personality_vector.subject.identity import digest_of, identity_of
from personality_vector.subject.protocols import Rubric
from personality_vector.subject.spec import Sampling
from personality_vector.traits import BIG_FIVE

WARM = Sampling(max_new_tokens=8, temperature=1.0)
INSTRUMENT = Instrument(
    name="two",
    version="1",
    system="Be brief.",
    items=(Item(id="who", text="Who are you?"), Item(id="why", text="Why?", trait="openness")),
)
ASKING = Asking(INSTRUMENT, WARM, samples=2)


def texts(tiny, asking=ASKING, seed=3, **given):
    return [one.reply.text for one in asking(tiny.subject(**given), seed)]


def test_every_item_is_asked_in_order_in_every_sample_after_the_system_message(tiny):
    read = []

    def edit(chat):
        read.append(list(chat))
        return chat

    asked = [(one.sample, one.id) for one in ASKING(tiny.subject(edit=edit), 3)]
    assert asked == [(0, "who"), (0, "why"), (1, "who"), (1, "why")]
    assert read[1] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
    ]


def test_a_sample_depends_on_its_number_and_not_on_how_many_are_drawn(tiny):
    assert texts(tiny, replace(ASKING, samples=3))[:4] == texts(tiny)


@pytest.mark.parametrize(("batch_size", "batches"), [(8, 1), (4, 2)])
def test_samples_share_batches_and_count_as_one_point(tiny, monkeypatch, batch_size, batches):
    asking = replace(ASKING, samples=4, sampling=replace(WARM, batch_size=batch_size))
    sizes, real = [], batch.generate_batch

    def counted(subject, chats, *given):
        sizes.append(len(chats))
        return real(subject, chats, *given)

    monkeypatch.setattr(batch, "generate_batch", counted)
    replies = [one.reply for one in asking(tiny.subject(), 3)]
    assert sizes == [batch_size] * batches
    assert not any(reply.is_shared for reply in replies)
    assert Interview(asking, ()).points_per_batch == batch_size // 8


def test_in_a_conversation_every_item_is_asked_at_every_turn_after_what_was_said(tiny):
    found = list(replace(ASKING, turns=2)(tiny.subject(), 3))
    asked = [(one.sample, one.turn, one.id) for one in found]
    turns = [(1, "who"), (1, "why"), (2, "why at turn 2"), (2, "who at turn 2")]
    assert asked == [(sample, *turn) for sample in (0, 1) for turn in turns]
    assert [one.reply.text for one in found if one.turn == 1] == texts(tiny)
    first, second = found[0], found[2]
    assert second.chat == [*first.answered, {"role": "user", "content": "Why?"}]
    assert [message["role"] for message in second.answered] == [
        "system",
        *["user", "assistant"] * 2,
    ]
    assert len({one.reply.text for one in found}) == len(found)


def test_one_turn_is_what_it_was_before_there_were_turns():
    """Runs of earlier versions resume; two turns are another measurement."""
    assert identity_of(replace(ASKING, turns=1)) == identity_of(ASKING)
    known = {"instrument": INSTRUMENT, "sampling": WARM, "samples": 2}
    assert identity_of(ASKING) == digest_of(["Asking", 1, known])
    assert identity_of(replace(ASKING, turns=2)) != identity_of(ASKING)


def test_samples_and_seeds_differ(tiny):
    first = texts(tiny)
    assert first[:2] != first[2:]
    assert first != texts(tiny, seed=4)


def test_the_edit_is_what_the_model_reads_and_nothing_else_changes_the_noise(tiny):
    def edit(chat):
        return [{"role": "system", "content": "You are bold."}, *chat[1:]]

    assert texts(tiny, edit=lambda chat: [*chat]) == texts(tiny)
    assert texts(tiny, edit=edit) != texts(tiny)


def test_what_an_intervention_says_about_decoding_holds(tiny):
    assert texts(tiny, decoding={"temperature": 0.0})[:2] == texts(
        tiny, replace(ASKING, sampling=replace(WARM, temperature=0.0), samples=1)
    )


def test_the_callers_random_state_is_untouched(tiny):
    before = torch.random.get_rng_state()
    texts(tiny)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_sample_seed_leaves_room_for_the_batch_number():
    seeds = {sample_seed(seed, sample) for seed in range(20) for sample in range(20)}
    assert len(seeds) == 400
    assert max(seeds) * 100_003 + 10_000 < 2**63


@pytest.mark.parametrize(
    ("samples", "temperature", "says"), [(2, 0.0, "the same reply"), (0, 1.0, "at least 1")]
)
def test_copies_of_a_greedy_reply_and_no_sample_are_refused(samples, temperature, says):
    with pytest.raises(DataError, match=says):
        Asking(INSTRUMENT, Sampling(temperature=temperature), samples)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_broken_model_is_not_asked(tiny, temperature, poison):
    with torch.no_grad():
        tiny.model.lm_head.weight[7] = poison
    asking = Asking(INSTRUMENT, Sampling(max_new_tokens=4, temperature=temperature))
    with pytest.raises(NonFiniteError, match=r"after 'Who are you\?'"):
        texts(tiny, asking)


def test_an_interview_keeps_what_was_said_and_what_it_cost(tiny):
    """No judge is needed, and the identity is of the answers alone."""
    interview = Interview(ASKING, (Rubric("boldness"), Rubric("openness")))
    found = interview.finish(tiny.subject(), interview.collect(tiny.subject(), 3))
    assert list(found.readings) == []
    assert [answer.reply for answer in found.answers] == texts(tiny)
    who, why = found.answers[:2]
    assert (who.question, who.item, who.sample) == ("Who are you?", "who", 0)
    assert who.tokens_in > 0
    assert who.tokens_out > 0
    assert (who.traits, why.traits) == ((), ("openness",)), "an item of no trait is of any"
    other = replace(interview, rubrics=(Rubric("calm"),))
    assert other.identity() == interview.identity()


def test_items_about_a_trait_that_is_not_rated_are_not_asked():
    instrument = builtin("eval/instruments/interview.yaml")
    whole = read_recipe(instrument, Instrument)
    one, all_of_them = (
        InterviewSpec(instrument=instrument, traits=traits).open().asking.instrument
        for traits in (("openness",), BIG_FIVE)
    )
    assert one.items == tuple(item for item in whole.items if item.trait == "openness")
    assert one.system == whole.system
    assert all_of_them == whole
