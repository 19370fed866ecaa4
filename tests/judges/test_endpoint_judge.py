"""The judge behind a server: in order, by expectation, and stopped by the first failure."""

import pickle

import pytest

from personality_vector.data.personas import COHERENCE
from personality_vector.errors import ModelError, RecipeError
from personality_vector.judges.endpoint import EndpointJudge
from personality_vector.subject.protocols import Judge
from tests.fake_endpoint import likely, serving

SAID = ("I love parties.", "I am alone.", "")


def judge_by_words(body):
    """Answer as a judge that looks for a word, and finds nothing to rate in an empty reply."""
    text = body["messages"][0]["content"]
    reply = text.split("<reply>\n")[1].split("\n</reply>")[0]
    if "coherent" in text:
        return likely({"90": 0.5, "100": 0.5}) if reply else likely({"0": 0.9})
    if not reply:
        return likely({"NONE": 0.9, "0": 0.1})
    return likely({"80": 0.6, "60": 0.2} if "love" in reply else {"10": 0.5, "I": 0.5})


def test_the_endpoint_rates_in_order_by_expectation(high, answers):
    with serving(judge_by_words) as fake:
        judge = EndpointJudge(model="judge", base_url=fake.base_url, requests=4)
        traits, coherences = judge(high, answers(*SAID * 5)), judge(COHERENCE, answers(*SAID))
    assert isinstance(judge, Judge)
    assert (judge.name, judge.scale) == ("endpoint judge", (0, 100))
    assert [score.value for score in traits[:2]] == pytest.approx([75, 10])
    assert traits[2].value is None
    assert traits[2].reason == "the judge gave no number for extraversion"
    assert traits == traits[:3] * 5
    assert [score.value for score in coherences] == pytest.approx([95, 95, 0])
    assert len(fake.requests) == len(traits) + len(coherences)


def test_a_failing_endpoint_stops_the_judging(high, answers):
    def refuse(_):
        raise ValueError("quota")

    with serving(refuse) as fake, pytest.raises(ModelError, match="quota"):
        EndpointJudge(model="j", base_url=fake.base_url, requests=2)(high, answers(*SAID * 50))
    assert len(fake.requests) < 100  # what had not begun is not asked any more


def test_a_missing_key_is_refused_before_anything_is_asked(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(RecipeError, match="OPENAI_API_KEY is not set"):
        EndpointJudge(model="m").open()


def test_its_identity_is_the_model_the_server_and_the_prompts(monkeypatch):
    judge = EndpointJudge(model="m", base_url="http://one/v1").open()
    for neutral in ({"api_key_env": "MY_KEY"}, {"requests": 3}):
        assert judge.model_copy(update=neutral).identity() == judge.identity()
    for other in ({"model": "n"}, {"base_url": "http://two/v1"}):
        assert judge.model_copy(update=other).identity() != judge.identity()
    assert pickle.loads(pickle.dumps(judge)) == judge.prepare(None) == judge  # noqa: S301
    before = judge.identity()
    monkeypatch.setattr(EndpointJudge, "version", "other words")
    assert judge.identity() != before
