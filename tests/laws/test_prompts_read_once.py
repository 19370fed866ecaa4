"""A prompt that several answers follow is read once, and nothing else changes."""

import pytest
import torch

from personality_vector.interventions.activations import ActivationSteering
from personality_vector.numeric.random import generator_for
from personality_vector.steering import SteeringVector
from personality_vector.steering.where import Gate
from personality_vector.subject import encoding
from personality_vector.subject.chat import answered, question
from personality_vector.subject.models import load_model, load_tokenizer
from personality_vector.subject.subject import Subject
from tests.laws.test_steering import TEXT as FAMILIES

TEXTS = ["I am quiet", "I love to talk to all of them", "Yes", "I would rather stay at home"]
ASKED = ["Who are you?", "Who is she?", "What do you do at a party with many people?"]
TOLERANCE = 2e-5  # float32
CHATS = [answered(question(asked), text) for asked in ASKED for text in TEXTS]
OTHER_ORDER = ("Do dogs like you and me?", "Do you like me and dogs?")
ALONE = [answered(question(asked), "Yes") for asked in OTHER_ORDER]
"""Two prompts of one length, which no other has, each with a single answer."""


@pytest.fixture
def subject(pico):
    """Return ``subject(family)``."""

    def load(family="llama"):
        return Subject(load_model(pico(family)), load_tokenizer(pico(family)))

    return load


def both(subject, chats, monkeypatch, batch_size=12):
    """Return likelihoods and predictions with and without reading once, and tokens of both."""
    read, found = [], []
    hook = subject.model.register_forward_pre_hook(
        lambda _, __, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    for is_shared in (True, False):
        read.append(0)
        if not is_shared:
            monkeypatch.setattr(encoding, "remembers", lambda _: False)
        predicted = [log_probs for _, log_probs in subject.predictions(chats, batch_size)]
        found.append((subject.log_likelihood(chats, batch_size), predicted))
    hook.remove()
    monkeypatch.undo()
    middle = len(read) - 1 - read[::-1].index(0)
    return (*found, sum(read[:middle]), sum(read[middle:]))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_predicted_is_the_same_and_fewer_tokens_are_read(subject, family, monkeypatch):
    once, each, fewer, more = both(subject(family), CHATS, monkeypatch)
    torch.testing.assert_close(once, each, atol=TOLERANCE, rtol=0)
    assert fewer < 0.75 * more


def test_where_prompts_differ_nothing_is_split(subject, monkeypatch):
    chats = [answered(question(asked), "Yes") for asked in ASKED]
    once, each, fewer, more = both(subject(), chats, monkeypatch)
    assert fewer == more
    torch.testing.assert_close(once, each, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("positions", "is_gated"),
    [("all", False), ("last 1", False), ("last 1 + response", False), ("response", True)],
)
@pytest.mark.parametrize("chats", [CHATS, CHATS[4:8] + ALONE], ids=["several", "also single"])
def test_steering_acts_on_the_same_tokens(subject, positions, is_gated, chats, monkeypatch):
    """A gate opens for some prompts and not for others, also where a prompt has one answer."""
    vectors = (torch.randn(48, generator=generator_for(seed, "v")) for seed in (1, 2))
    direction, other = vectors
    vector = SteeringVector({1: direction}, "", None, "v", "response_mean", (1, 1))
    gate = Gate(0, other, threshold=_between(subject(), other, chats)) if is_gated else None
    steering = ActivationSteering(vector, [1], positions=positions, gate=gate)
    loaded = subject()
    with steering.applied(loaded, 2.0) as steered:
        once, each, fewer, more = both(steered, chats, monkeypatch)
    torch.testing.assert_close(once, each, atol=TOLERANCE, rtol=0)
    assert fewer < more
    moved = (once[0] - loaded.log_likelihood(chats)).abs() > 1e-3
    assert (0 < moved.sum() < len(chats)) if is_gated else moved.all()


def _between(subject, direction, chats):
    """Return a threshold between the cosines of the last two prompts with a direction."""
    from personality_vector.subject.prompts import Prompts, reading

    cosines = []
    for asked in dict.fromkeys(chat[0]["content"] for chat in chats):
        encoded = encoding.encode_chats(subject.tokenizer, [answered(question(asked), "Yes")])
        states = []
        hook = subject.model.model.layers[0].register_forward_hook(
            lambda _, __, out, kept=states: kept.append(out[0] if isinstance(out, tuple) else out)
        )
        with torch.no_grad(), reading(Prompts.of(encoded.input_ids)):
            subject.model(input_ids=encoded.input_ids)
        hook.remove()
        mean = states[0].reshape(-1, direction.numel())[: encoded.prompts.ends[0]].float().mean(0)
        cosines.append(float(torch.cosine_similarity(mean, direction, dim=0)))
    return sum(cosines[-2:]) / 2
