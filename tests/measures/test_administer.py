import math

import pytest
import torch
from personality_vector.measures.administer import administer, sample_seed

from personality_vector.data.instruments import Instrument, Item
from personality_vector.errors import DataError, NonFiniteError

WARM = Generation(max_new_tokens=8, temperature=1.0)
INSTRUMENT = Instrument(
    name="two",
    version="1",
    system="Be brief.",
    items=(Item(id="who", text="Who are you?"), Item(id="why", text="Why?", trait="openness")),
)


def ask(tiny, samples=2, seed=3, generation=WARM, **more):
    return administer(
        tiny.model,
        tiny.tokenizer,
        INSTRUMENT,
        generation=generation,
        samples=samples,
        seed=seed,
        **more,
    )


def test_every_item_is_asked_in_order_in_every_sample_after_the_system_message(tiny):
    responses = ask(tiny)
    order = [(response.sample, response.item.id) for response in responses]
    assert order == [(0, "who"), (0, "why"), (1, "who"), (1, "why")]
    assert list(responses[1].chat) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Why?"},
    ]


def test_a_sample_depends_on_its_number_and_not_on_how_many_are_drawn(tiny):
    assert ask(tiny, samples=3)[:4] == ask(tiny, samples=2)


def test_samples_and_seeds_differ(tiny):
    def texts(responses):
        return [response.text for response in responses]

    first = ask(tiny)
    assert texts(first[:2]) != texts(first[2:])
    assert texts(first) != texts(ask(tiny, seed=4))


def test_two_interventions_draw_the_same_noise(tiny):
    before = ask(tiny)
    assert [r.text for r in ask(tiny, edit=lambda chat: [*chat])] == [r.text for r in before]


def test_the_edit_is_what_the_model_reads_and_what_is_recorded(tiny):
    def edit(chat):
        return [{"role": "system", "content": "You are bold."}, *chat[1:]]

    edited = ask(tiny, edit=edit)
    assert edited[0].chat[0]["content"] == "You are bold."
    assert [r.text for r in edited] != [r.text for r in ask(tiny)]


def test_the_callers_random_state_is_untouched(tiny):
    before = torch.random.get_rng_state()
    ask(tiny)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_sample_seed_leaves_room_for_the_batch_number():
    seeds = {sample_seed(seed, sample) for seed in range(20) for sample in range(20)}
    assert len(seeds) == 400
    assert max(seeds) * 100_003 + 10_000 < 2**63


def test_copies_of_a_greedy_reply_are_refused(tiny):
    greedy = Generation(max_new_tokens=4, temperature=0.0)
    assert len(ask(tiny, samples=1, generation=greedy)) == 2
    with pytest.raises(DataError, match="copies"):
        ask(tiny, samples=2, generation=greedy)


def test_no_sample_is_refused(tiny):
    with pytest.raises(DataError, match="at least 1"):
        ask(tiny, samples=0)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_broken_model_is_not_asked(tiny, temperature, poison):
    with torch.no_grad():
        tiny.model.lm_head.weight[7] = poison
    with pytest.raises(NonFiniteError, match=r"after 'Who are you\?'"):
        ask(tiny, samples=1, generation=Generation(max_new_tokens=4, temperature=temperature))
