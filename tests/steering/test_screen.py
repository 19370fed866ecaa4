"""Projection differences are their formula, computed the slow way, and groups are what they say."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from personality_vector.errors import DataError
from personality_vector.interventions.activations import ActivationSteering
from personality_vector.steering.screen import Screened, grouped, projection_differences
from personality_vector.subject import Sampling
from personality_vector.subject.chat import answered, question
from personality_vector.subject.subject import Subject, generate_replies
from tests.steering.test_monitor import CHATS, TOLERANCE, along, pooled_state, vector_for

GREEDY = Sampling(max_new_tokens=8, temperature=0.0, batch_size=2)
FAMILIES = ("llama", "qwen2", "gpt2")


@pytest.fixture
def subject(loaded):
    return lambda family="llama": Subject(*loaded(family), sampling=GREEDY)


@pytest.fixture
def silent(monkeypatch):
    def never(*_, **__):
        pytest.fail("the model was asked to reply")

    monkeypatch.setattr("personality_vector.steering.screen.generate_replies", never)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_difference_is_its_formula(subject, family):
    base = subject(family)
    vector = vector_for(base.model)
    for layer in (0, 1):
        found = projection_differences(base, CHATS, vector, layer)
        own = [
            generate_replies(base.model, base.tokenizer, [chat[:-1]], GREEDY, seed=0)[0].text
            for chat in CHATS
        ]
        assert found.replies == tuple(own)
        assert all(own)

        def projected(chat, layer=layer):
            state = pooled_state(base.model, base.tokenizer, chat, layer, "response_mean")
            return along(state, vector[layer])

        theirs = [projected(chat) for chat in CHATS]
        ours = [
            projected(answered(chat[:-1], reply)) for chat, reply in zip(CHATS, own, strict=True)
        ]
        np.testing.assert_allclose(found.projections.numpy(), theirs, rtol=0, atol=TOLERANCE)
        expected = np.subtract(theirs, ours)
        np.testing.assert_allclose(found.differences.numpy(), expected, rtol=0, atol=TOLERANCE)


def test_what_the_model_says_itself_makes_no_difference(subject):
    base = subject()
    prompts = [chat[:-1] for chat in CHATS]
    replies = generate_replies(base.model, base.tokenizer, prompts, GREEDY, seed=0)
    chats = [answered(p, reply.text) for p, reply in zip(prompts, replies, strict=True)]
    found = projection_differences(base, chats, vector_for(base.model), 1)
    torch.testing.assert_close(
        found.differences, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12
    )


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("family", FAMILIES)
def test_against_the_prompt_nothing_is_generated(subject, family):
    base = subject(family)
    vector = vector_for(base.model)
    found = projection_differences(base, CHATS, vector, 1, against="prompt")
    expected = [
        along(
            pooled_state(base.model, base.tokenizer, chat, 1, "response_mean")
            - pooled_state(base.model, base.tokenizer, chat, 1, "prompt_last"),
            vector[1],
        )
        for chat in CHATS
    ]
    np.testing.assert_allclose(found.differences.numpy(), expected, rtol=0, atol=TOLERANCE)
    assert found.replies is None


@pytest.mark.usefixtures("silent")
def test_against_nothing_differences_are_about_the_mean_of_the_data(subject):
    base = subject()
    found = projection_differences(base, CHATS, vector_for(base.model), 1, against="none")
    torch.testing.assert_close(found.differences, found.projections - found.projections.mean())
    said = found.summary()
    assert (said["mean"], said["mean_low"]) == (None, None)
    assert said["projection_mean"] == pytest.approx(found.projections.mean().item())


def test_a_steered_model_differs_less_by_what_it_is_steered_by(subject):
    """At the steered layer both terms move alike: only what the two replies say is left."""
    base = subject()
    vector = vector_for(base.model)
    plain = projection_differences(base, CHATS, vector, 1, against="prompt")
    with ActivationSteering(vector, layers=[1]).applied(base, 2.0) as steered:
        found = projection_differences(steered, CHATS, vector, 1, against="prompt")
    shift = 2.0 * vector.norm(1)
    torch.testing.assert_close(found.projections, plain.projections + shift, rtol=0, atol=1e-4)
    torch.testing.assert_close(found.differences, plain.differences, rtol=0, atol=1e-4)


def test_a_seed_draws_the_same_replies_and_no_two_batches_the_same_noise(subject):
    warm = replace(subject(), sampling=Sampling(max_new_tokens=8, temperature=1.5, batch_size=1))
    chats = [answered(question("Who are you?"), "I talk.")] * 4

    def drawn(seed):
        found = projection_differences(warm, chats, vector_for(warm.model), 1, seed=seed)
        return found.replies

    assert drawn(0) == drawn(0)
    assert drawn(0) != drawn(1)
    assert len(set(drawn(0))) > 1


def test_a_reply_without_words_is_unscored_and_nothing_is_imputed(subject, monkeypatch):
    base = subject()
    vector = vector_for(base.model)
    whole = projection_differences(base, CHATS, vector, 1)

    def one_is_silent(*args, **how):
        found = generate_replies(*args, **how)
        return [replace(r, text="") if r.text == whole.replies[1] else r for r in found]

    monkeypatch.setattr("personality_vector.steering.screen.generate_replies", one_is_silent)
    found = projection_differences(base, CHATS, vector, 1)
    assert math.isnan(found.differences[1])
    torch.testing.assert_close(found.differences[[0, 2]], whole.differences[[0, 2]])
    said = found.summary()
    assert said["unscored"] == 1
    assert said["mean"] == pytest.approx(whole.differences[[0, 2]].mean().item())


def test_a_base_that_never_replies_has_no_difference(subject, monkeypatch):
    base = subject()

    def silence(*args, **how):
        return [replace(r, text="") for r in generate_replies(*args, **how)]

    monkeypatch.setattr("personality_vector.steering.screen.generate_replies", silence)
    found = projection_differences(base, CHATS, vector_for(base.model), 1)
    said = found.summary()
    assert (said["mean"], said["unscored"]) == (None, 3)
    assert set(said["quantiles"].values()) == {None}
    assert grouped(found.differences, 0.5) == [""] * 3


def test_without_chats_there_is_nothing_to_screen(subject):
    base = subject()
    with pytest.raises(DataError, match="no input"):
        projection_differences(base, [], vector_for(base.model), 1)


def values(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


@pytest.mark.parametrize(
    ("numbers", "share", "expected"),
    [
        ((5.0, 1.0, 3.0, 2.0, 4.0), 0.2, ["high", "low", "middle", "middle", "middle"]),
        ((5.0, 1.0, 3.0, 2.0, 4.0), 0.5, ["high", "low", "middle", "low", "high"]),
        ((5.0, 1.0, 3.0), 0.01, ["high", "low", "middle"]),
        ((2.0, 2.0, 2.0, 2.0), 0.25, ["high", "middle", "middle", "low"]),
        ((2.0,), 0.5, ["middle"]),
        ((2.0, math.nan, 1.0), 0.5, ["high", "", "low"]),
    ],
)
def test_groups_are_the_ends(numbers, share, expected):
    assert grouped(values(*numbers), share) == expected


def test_the_mean_has_the_interval_of_a_mean():
    drawn = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    said = Screened(drawn, drawn).summary()
    half = 1.96 * drawn.std().item() / 20
    assert said["mean_high"] - said["mean"] == pytest.approx(half, rel=1e-3)
    assert said["mean"] - said["mean_low"] == pytest.approx(half, rel=1e-3)
    assert said["quantiles"]["50 %"] == pytest.approx(float(np.median(drawn.numpy())))
