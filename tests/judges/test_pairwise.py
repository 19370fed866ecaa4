"""Pairs in both orders: which of two replies shows more."""

import pickle
from dataclasses import replace

import pytest

from personality_vector.errors import RecipeError
from personality_vector.judges.endpoint import EndpointJudge
from personality_vector.judges.local import LocalJudge
from personality_vector.judges.pairwise import PairwiseJudge, gap_between_orders
from personality_vector.judges.spec import JudgeRecipe
from personality_vector.subject.protocols import Answer, Judge, rated
from personality_vector.subject.subject import Subject
from tests.fake_endpoint import likely, said, serving

BASE = "I read."


def pair(reply, base_reply=BASE):
    return Answer("who", 0, "Who are you?", reply, base_reply=base_reply)


def replies_in(body):
    text = body["messages"][0]["content"]
    return [text.split(f"<reply {x}>\n")[1].split(f"\n</reply {x}>")[0] for x in "AB"]


def by_parties(body):
    """Answer as a judge who looks for parties, and likes what comes first."""
    first, second = replies_in(body)
    if first.count("party") > second.count("party"):
        return likely({"A": 0.9, "B": 0.1})
    return likely({"A": 0.4, " B": 0.5, "I": 0.1})


def pairwise(fake, **options):
    return PairwiseJudge(judge={"endpoint": {"model": "j", "base_url": fake.base_url, **options}})


def test_each_pair_is_shown_in_both_orders(high):
    with serving(by_parties) as fake:
        judge = pairwise(fake)
        more, less = judge(high, [pair("A party!"), pair("I sleep.", "party party")])
        asked = sorted(map(replies_in, fake.requests))
    assert isinstance(judge, Judge)
    assert (judge.name, judge.scale) == ("pairwise endpoint j", (-1, 1))
    # Whoever comes first leads by 0.8 if it has more parties, and by -0.1 if not.
    assert more.value == pytest.approx((0.8 + 0.1) / 2)
    assert less.value == pytest.approx(-(0.8 + 0.1) / 2)
    pairs = [["A party!", BASE], ["I sleep.", "party party"]]
    assert asked == sorted([*pairs, *(pair[::-1] for pair in pairs)])
    # Both answers gain or lose by their place: 0.8 as the first and 0.1 as the second, or less.
    assert gap_between_orders(more.reason) == pytest.approx(0.7)
    assert gap_between_orders(less.reason) == pytest.approx(0.7)


def test_a_judge_who_only_looks_at_the_place_scores_nothing(high):
    with serving(lambda _: likely({"A": 1.0})) as fake:
        judge = pairwise(fake)
        (score,) = judge(high, [pair("A party!")])
    assert score.value == 0
    assert gap_between_orders(score.reason) == 2


def test_what_cannot_be_compared_is_unscored_and_not_asked_about(high):
    with serving(by_parties) as fake:
        scores = pairwise(fake)(high, [pair("Hi.", None), pair(""), pair("Hi.", " "), pair(BASE)])
    assert [score.reason for score in scores[:3]] == [
        "there is no reply of the base to compare it with",
        "one of the two replies is empty",
        "one of the two replies is empty",
    ]
    assert scores[3].value == 0
    assert [gap_between_orders(score.reason) for score in scores] == [None] * 4
    assert fake.requests == []


def test_under_a_quarter_of_the_mass_in_one_order_is_unscored(high):
    def unsure(body):
        return likely({"A": 0.24, "Hm": 0.76} if replies_in(body)[0] == BASE else {"A": 1.0})

    with serving(unsure) as fake:
        (score,) = pairwise(fake)(high, [pair("A party!")])
    assert (score.value, score.reason) == (None, "the judge chose neither of the replies")
    refused = {**said(""), "message": {"role": "assistant", "refusal": "I cannot."}}
    with serving(lambda _: refused) as fake:
        (score,) = pairwise(fake)(high, [pair("A party!")])
    assert score.reason == "the judge refused: I cannot."


def test_thoughts_are_compared_by_nobody(high):
    thought = "<think>\nparty party\n</think>\n\nI sleep."
    with serving(by_parties) as fake:
        rated(pairwise(fake), high, [replace(pair(thought), base_reply=f"{thought} Now.")])
    assert ["I sleep.", "I sleep. Now."] in map(replies_in, fake.requests)


def test_a_local_model_compares_by_letters(pico, high, monkeypatch):
    judge = PairwiseJudge(judge=LocalJudge(checkpoint=str(pico("llama")), device="cpu"))
    monkeypatch.setattr(
        Subject, "load", lambda *_, **__: pytest.fail("a pair without a base reply was asked")
    )
    assert not judge.open().is_remote
    assert judge.name.startswith("pairwise local ")
    tokens = LocalJudge(checkpoint=str(pico("llama"))).tokens(("A", "B"))
    assert set(tokens.values()) == {"A", "B"}
    (score,) = judge(high, [pair("Hi.", None)])
    assert score.value is None


def test_only_a_language_model_compares(tmp_path):
    def parsed(judge):
        return JudgeRecipe.parse({"judge": judge}, origin="r.yaml", folder=tmp_path).judge

    assert isinstance(parsed({"pairwise": {"judge": {"endpoint": {"model": "m"}}}}), PairwiseJudge)
    with pytest.raises(RecipeError, match=r"comparing needs a language model: give {endpoint"):
        parsed({"pairwise": {"judge": "classifier"}})


def test_its_identity_is_that_of_the_model_and_of_the_prompt(monkeypatch):
    one = PairwiseJudge(judge=EndpointJudge(model="m", base_url="http://one/v1", budget=None))
    same = PairwiseJudge(judge=EndpointJudge(model="m", base_url="http://one/v1", retries=1))
    assert same.identity() == one.identity()
    other = PairwiseJudge(judge=EndpointJudge(model="n", base_url="http://one/v1"))
    assert other.identity() != one.identity() != one.judge.identity()
    assert pickle.loads(pickle.dumps(one)) == one.prepare(None) == one  # noqa: S301
    before = one.identity()
    monkeypatch.setattr(PairwiseJudge, "version", "other words")
    assert one.identity() != before
