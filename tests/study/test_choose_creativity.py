"""The layer of a direction without poles: re-stated from the replies, and told by planted ones."""

from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score

from personality_vector.data.creativity import CreativityPair
from personality_vector.errors import DataError
from personality_vector.steering import SteeringVector
from personality_vector.steering.monitor import creativity_scores
from personality_vector.study.choose.creativity import choose_layer
from personality_vector.study.choose.layers import examine
from personality_vector.subject.chat import answered, question
from personality_vector.subject.subject import Reply, Subject


class Told(Subject):
    """Says to each prompt what the prompt says."""

    def replies(self, chats, seed):
        said = [chat[-1]["content"].partition(": ")[2] for chat in chats]
        return [Reply(text, 1, 1, 0.0) for text in said]


def pairs(*texts):
    return [
        CreativityPair(creative=f"Dream: {one}", uncreative=f"Count: {other}")
        for one, other in texts
    ]


SIDES = ("creative", "uncreative")
PAIRS = {
    "validation": pairs(("I love parties", "I am quiet"), ("a dream of tea", "tea"), ("ha!", "no")),
    "test": pairs(("a moon made of rain", "it rains"), ("I sing to it", "I go home")),
}


@pytest.fixture
def told(pico):
    loaded = Subject.load(str(pico("llama")), device="cpu")
    return Told(loaded.model, loaded.tokenizer)


def replied(subject, side, part):
    chats = [question(getattr(pair, side)) for pair in PAIRS[part]]
    return [answered(c, r.text) for c, r in zip(chats, subject.replies(chats, 0), strict=True)]


def towards_creative(subject):
    """Return the direction of the replies themselves, so that it separates and steers."""
    sides = [replied(subject, side, "validation") for side in SIDES]
    return SteeringVector.extract(subject.model, subject.tokenizer, *sides, label="creativity")


def scores(subject, vector, layer, part):
    """Return the scores of both sides by the function for one layer."""
    model, tokenizer, direction = subject.model, subject.tokenizer, vector[layer]
    sides = [replied(subject, side, part) for side in SIDES]
    found = [creativity_scores(model, tokenizer, side, direction, layer) for side in sides]
    return [[float(one.mean()) for one in own] for own in found]


def test_the_layer_with_the_largest_d_prime_is_chosen_and_the_test_part_only_reported(told):
    vector = towards_creative(told)
    chosen = choose_layer(told, vector, PAIRS, (0, 1), batch_size=2)
    d_primes = {}
    for one in chosen.layers:
        more, less = map(torch.tensor, scores(told, vector, one.layer, "validation"))
        spread = ((more.var() + less.var()) / 2).sqrt()
        d_primes[one.layer] = float((more.mean() - less.mean()) / spread)
        assert one.separation.d_prime == pytest.approx(d_primes[one.layer], rel=1e-3)
        auc = roc_auc_score([1] * 3 + [0] * 3, [*more.tolist(), *less.tolist()])
        assert one.separation.auc == pytest.approx(auc)
    assert d_primes[0] != d_primes[1]
    assert chosen.layer == max(d_primes, key=d_primes.get)
    more, less = scores(told, vector, chosen.layer, "test")
    assert chosen.test.auc == pytest.approx(roc_auc_score([1] * 2 + [0] * 2, [*more, *less]))


def test_a_layer_that_separates_but_steers_the_other_way_is_not_chosen(told, monkeypatch):
    vector = towards_creative(told)
    best = choose_layer(told, vector, PAIRS, (0, 1)).layer
    turned = lambda *given: [  # noqa: E731
        replace(one, slope=-1.0 if one.layer == best else 1.0) for one in examine(*given)
    ]
    monkeypatch.setattr("personality_vector.study.choose.creativity.examine", turned)
    assert choose_layer(told, vector, PAIRS, (0, 1)).layer == 1 - best
    with pytest.raises(
        DataError, match=rf"creativity: at none of the layers \[{best}\] does it both"
    ):
        choose_layer(told, vector, PAIRS, (best,))


def test_a_side_that_says_nothing_is_refused(told):
    silent = {
        **PAIRS,
        "validation": pairs(("I sing", "no")) * 1
        + [CreativityPair(creative="Dream", uncreative="Count: one")],
    }
    with pytest.raises(DataError, match="at least two of each, got 1 and 2"):
        choose_layer(told, towards_creative(told), silent, (0, 1))
