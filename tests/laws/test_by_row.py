"""Many points of one intervention in one batch: each finds what it finds alone."""

import threading
from dataclasses import replace
from functools import partial

import pytest
import torch

from personality_vector.delta import Delta
from personality_vector.errors import DataError, RowsError
from personality_vector.interventions.activations import ActivationSteering
from personality_vector.interventions.weights import HybridEdit, WeightEdit
from personality_vector.merging.merged import merged
from personality_vector.numeric.random import generator_for
from personality_vector.steering import SteeringVector
from personality_vector.subject import encoding
from personality_vector.subject.batch import Share, together
from personality_vector.subject.chat import answered, question
from personality_vector.subject.draws import Draw
from personality_vector.subject.models import load_model, load_tokenizer
from personality_vector.subject.spec import Sampling
from personality_vector.subject.subject import Subject

STRENGTHS = (-1.5, 0.0, 0.4, 1.0)
LINEAR = ("*.self_attn.q_proj.weight", "*.mlp.down_proj.weight", "lm_head.weight")
CHATS = [question("Who are you?"), question("What do you do at a party with many people?")]
SAID = [answered(chat, text) for chat in CHATS for text in ("I am quiet", "I love to talk to all")]
KINDS = ("vector", "response", "lora", "sum", "dense", "hybrid")


@pytest.fixture
def subject(pico):
    """Return pico llama in float64, where batches of any shape give nearly the same logits."""
    path = pico("llama")
    return Subject(load_model(path).double(), load_tokenizer(path))


@pytest.fixture
def kinds(pico, pico_tuned, adapter):
    """Return interventions of every kind that takes strengths by row."""
    base = pico("llama")
    vector = SteeringVector(
        {1: torch.randn(48, generator=generator_for(1, "v"))},
        "",
        None,
        "v",
        "response_mean",
        (1, 1),
    )

    def lora(**options):
        return Delta.from_lora(adapter(**options), base)

    return {
        "vector": lambda: ActivationSteering(vector, [1]),
        "response": lambda: ActivationSteering(vector, [1], positions="last 1 + response"),
        "lora": lambda: WeightEdit(lora()),
        "sum": lambda: WeightEdit(0.5 * lora() - lora(r=2, target_modules=["q_proj"])),
        "dense": lambda: WeightEdit(
            merged(base, [(pico_tuned("llama"), 1.0)], include=list(LINEAR))
        ),
        "hybrid": lambda: HybridEdit(lora() + vector),
    }


def found_in(subject):
    """Return everything that can be asked of a subject."""
    drawn = Sampling(12, 0.9, 0.8, repetition_penalty=1.2, no_repeat_ngram=3)
    replies = [
        reply.text
        for seed, how in enumerate((drawn, replace(drawn, batch_size=1), Sampling(8, 0.0)))
        for reply in replace(subject, sampling=how).replies(CHATS, seed)
    ]
    predicted = [log_probs for _, log_probs in subject.predictions(SAID, 3)]
    likely = subject.log_likelihood(SAID, 3)
    return replies, torch.cat([likely, subject.next_token(CHATS, [5, 9]).flatten()]), predicted


@pytest.mark.parametrize("kind", KINDS)
def test_each_strength_finds_what_it_finds_alone(subject, kinds, kind, monkeypatch):
    intervention = kinds[kind]()
    before = {name: one.clone() for name, one in subject.model.state_dict().items()}
    alone = {}
    for strength in STRENGTHS:
        with intervention.applied(subject, strength) as edited:
            alone[strength] = found_in(edited)
    monkeypatch.setattr(encoding, "MOST_LOGITS", 20_000)  # so that a batch is read in parts
    with intervention.by_row(subject, STRENGTHS) as edited:
        shares = [Share(found_in, strength, {}) for strength in STRENGTHS]
        found = dict(zip(STRENGTHS, together(edited, shares), strict=True))
    for strength in STRENGTHS:
        assert found[strength][0] == alone[strength][0]
        torch.testing.assert_close(found[strength][1:], alone[strength][1:], atol=1e-5, rtol=0)
    assert len({tuple(one[0]) for one in alone.values()}) > 1
    assert all(torch.equal(one, before[name]) for name, one in subject.model.state_dict().items())
    assert not any(module._forward_hooks for module in subject.model.modules())


def test_each_seed_draws_what_it_draws_alone(subject):
    asked = replace(subject, sampling=Sampling(20, 1.0))

    def ask(seed, point):
        return [
            reply.text for reply in replace(point, sampling=asked.sampling).replies(CHATS, seed)
        ]

    alone = [ask(seed, subject) for seed in range(4)]
    shares = [Share(partial(ask, seed), None, {}) for seed in range(4)]
    assert together(subject, shares) == alone
    assert len({tuple(texts) for texts in alone}) == 4

    def sample(seeds, point):
        own = replace(point, sampling=asked.sampling)
        found = own.replies_of([Draw(CHATS, seed) for seed in seeds])
        return [[reply.text for reply in replies] for replies in found]

    assert sample(range(4), subject) == alone
    halves = [Share(partial(sample, seeds), None, {}) for seeds in ((0, 1), (2, 3))]
    assert together(subject, halves) == [alone[:2], alone[2:]]


@pytest.mark.parametrize("strengths", [(0.5,), (0.5, 2.0)])
def test_what_is_no_linear_layer_is_refused(pico, pico_tuned, strengths):
    for family, name in (
        ("llama", "model.norm.weight"),
        ("gpt2", "transformer.h.0.mlp.c_fc.weight"),
    ):
        delta = merged(pico(family), [(pico_tuned(family), 1.0)], include=[name])
        model = Subject(load_model(pico(family)), None)
        with pytest.raises(RowsError, match=f"it changes {name}"):
            WeightEdit(delta).by_row(model, strengths).__enter__()
        assert not any(module._forward_hooks for module in model.model.modules())


def test_a_point_that_fails_ends_all(subject):
    threads = threading.active_count()

    def ask(number, point):
        point.log_likelihood(SAID)
        if number == 1:
            raise ValueError("one of them")
        return point.log_likelihood(SAID)

    with pytest.raises(ValueError, match="one of them"):
        together(subject, [Share(partial(ask, number), None, {}) for number in range(3)])
    assert threading.active_count() <= threads


def test_what_only_one_point_asks_wrongly_fails_in_that_point(subject, caplog):
    caplog.set_level("INFO")

    def ask(chats, point):
        try:
            return len(point.log_likelihood(chats))
        except DataError as error:
            return str(error)

    shares = [Share(partial(ask, chats), None, {}) for chats in (SAID, CHATS, SAID[:2])]
    first, second, third = together(subject, shares)
    assert (first, third) == (4, 2)
    assert "must end with a message of the assistant" in second
    assert caplog.text.count("3 points are asked one by one, since together: a chat must") == 1


def test_a_measure_cannot_read_the_model_of_a_batch(subject):
    for use in (lambda p: p.model.config, lambda p: p.model(torch.zeros(1, 1))):
        with pytest.raises(DataError, match="leave out its points_per_batch"):
            together(subject, [Share(use, None, {})] * 2)


def test_rows_without_a_strength_are_refused(subject, kinds):
    for kind in ("vector", "lora"):
        with (
            kinds[kind]().by_row(subject, STRENGTHS) as edited,
            pytest.raises(DataError, match="strengths of their own"),
        ):
            edited.log_likelihood(SAID)
