"""The judge behind a server: in order, by expectation, and stopped by the first failure."""

import pickle
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from personality_vector.data.personas import COHERENCE
from personality_vector.errors import DataError, ModelError, RecipeError
from personality_vector.judges.endpoint import EndpointJudge
from personality_vector.lab import cache_folder
from personality_vector.subject.protocols import Judge
from tests.fake_endpoint import Fault, failed, likely, said, serving

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
    assert len(fake.requests) == 3 + 3, "the same is asked once"


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


def test_a_rubric_from_1_to_5_is_one_prompt_a_trait(high, role, answers):
    asked = []

    def rate(body):
        asked.append(body["messages"][0]["content"])
        return likely({"5": 0.5, "4": 0.3, "7": 0.1, "0": 0.1})

    with serving(rate) as fake:
        judge = EndpointJudge(model="judge", base_url=fake.base_url, scale="1-5")
        (score,) = judge(high, answers("I love parties."))
        judge(role, answers("I love parties."))
    assert isinstance(judge, Judge)
    assert judge.scale == (1, 5)
    assert score.value == pytest.approx((5 * 0.5 + 4 * 0.3) / 0.8)
    for part in (
        "5: The reply clearly shows this: Talks gladly.",
        "1: It clearly shows",
    ):
        assert part in asked[0]
    assert "1: It shows no sign of it." in asked[1]
    assert all("whole number from 1 to 5" in text for text in asked)


def test_a_rubric_from_1_to_5_does_not_rate_coherence():
    judge = EndpointJudge(model="m", base_url="http://one/v1", scale="1-5")
    with pytest.raises(DataError, match="endpoint m: scale 1-5 rates traits, not coherence; use"):
        judge(COHERENCE, ())
    usual = EndpointJudge(model="m", base_url="http://one/v1")
    assert usual(COHERENCE, ()) == []
    assert usual.identity() != judge.identity()


def test_a_server_that_drops_log_probabilities_is_asked_once(high, answers):
    with serving(lambda _: said("80")) as fake, pytest.raises(ModelError) as caught:
        EndpointJudge(model="j", base_url=fake.base_url)(high, answers(*map(str, range(50))))
    assert "returns no log-probabilities, which a judge needs; choose a model" in str(caught.value)
    assert len(fake.requests) == 1


def test_a_number_under_a_quarter_of_the_mass_is_unscored(high, answers):
    with serving(lambda _: likely({"Sorry": 0.76, "80": 0.24})) as fake:
        (score,) = EndpointJudge(model="j", base_url=fake.base_url)(high, answers("Hm."))
    assert (score.value, score.reason) == (None, "the judge gave no number for extraversion")


def test_every_answer_ends_scored_or_with_its_reason(high, answers, monkeypatch):
    """A server with every fault, each for some answers and for ever."""
    monkeypatch.setattr("personality_vector.subject.endpoint._FIRST_PAUSE", 0.001)
    faults = {
        "slow": Fault(seconds=6.0),
        "429": failed(429, "slow down"),
        "500": failed(500, "oops"),
        "broken": Fault(body=b'{"choices": [{'),
        "cut": Fault(body={"choices": []}, sent=0.5),
        "reset": Fault(resets=True),
        "long": failed(400, "too long", "context_length_exceeded"),
    }

    def rate(body):
        text = body["messages"][0]["content"]
        reply = text.split("<reply>\n")[1].split("\n</reply>")[0]
        name = reply.split()[0]
        if name in faults:
            raise faults[name]
        return {"word": likely({"maybe": 1.0}), "no": refused}.get(name, likely({"60": 1.0}))

    refused = {**said(""), "message": {"role": "assistant", "refusal": "I cannot."}}
    names = ["fine", *faults, "word", "no"]
    replies = [f"{name} {number}" for number in range(3) for name in names]
    with serving(rate) as fake:
        judge = EndpointJudge(model="j", base_url=fake.base_url, timeout=2.0, retries=1)
        scores = judge(high, answers(*replies))
    reasons = dict(zip(replies, ((s.value, s.reason) for s in scores), strict=True))
    assert [reasons[f"fine {n}"] for n in range(3)] == [(60.0, "")] * 3
    expected = {
        "slow": "did not answer within 2 seconds",
        "429": "answered 429",
        "500": "answered 500",
        "broken": "not a completion",
        "cut": "the connection broke",
        "reset": "the connection broke",
        "long": "too long",
        "word": "gave no number",
        "no": "the judge refused: I cannot.",
    }
    for name, reason in expected.items():
        for number in range(3):
            value, found = reasons[f"{name} {number}"]
            assert value is None
            assert reason in found
    assert len(fake.requests) == 3 * (1 + 6 * 2 + 3)


PRICED = {"price_in": 1000.0, "price_out": 2000.0}  # a request of the fake server costs 0.102


def test_a_budget_is_never_passed_and_the_rest_resumes(high, answers, tmp_path):
    """However many are on their way; what a request costs at most is known before it begins."""
    replies = [f"Reply {number}" for number in range(20)]
    with serving(lambda _: likely({"60": 1.0})) as fake:
        options = {"model": "j", "base_url": fake.base_url, "requests": 8, **PRICED}

        def judge(budget):
            return EndpointJudge(**options, budget=budget).billed_to(tmp_path)

        for budget in (1.6, 1.6, 2.0):
            before = len(fake.requests)
            with pytest.raises(ModelError, match=f"the budget of {budget:g} is used up: "):
                judge(budget)(high, answers(*replies))
            assert 0.102 * len(fake.requests) <= budget
            assert judge(budget).bill()["price"] == pytest.approx(0.102 * len(fake.requests))
        assert 3 <= before < 20
        scores = judge(100.0)(high, answers(*replies))
    assert [score.value for score in scores] == [60.0] * 20
    assert len(fake.requests) == 20
    assert judge(None).bill() == {
        "judge": "endpoint j",
        "requests": 20,
        "tokens_in": 2000,
        "tokens_out": 20,
        "price": pytest.approx(2.04),
    }
    assert EndpointJudge(**options).billed_to(tmp_path / "other").bill()["requests"] == 0


def test_a_failed_request_is_free_only_if_the_server_did_nothing(high, answers, tmp_path):
    faults = [failed(500, "oops"), Fault(resets=True)]

    def rate(_):
        if faults:
            raise faults.pop(0)
        return likely({"60": 1.0})

    with serving(rate) as fake:
        judge = EndpointJudge(model="j", base_url=fake.base_url, **PRICED).billed_to(tmp_path)
        judge(high, answers("Hello."))
        bill = judge.bill()
    assert bill["requests"] == 2
    assert bill["tokens_in"] > 300


def test_a_budget_without_prices_is_refused():
    with pytest.raises(ValueError, match="budget needs price_in and price_out"):
        EndpointJudge(model="m", budget=1.0)


SCRIPT = """
import sys
from personality_vector.judges.endpoint import EndpointJudge
from personality_vector.subject.protocols import Answer, Rubric
judge = EndpointJudge(model="j", base_url=sys.argv[1], requests=2)
asked = [Answer("who", 0, "Who?", f"Reply {n}.") for n in range(40)]
print([score.value for score in judge(Rubric("kindness"), asked)])
"""


@pytest.mark.slow
def test_nothing_that_was_answered_is_asked_again_after_a_kill():
    def rate(_):
        time.sleep(0.02)
        return likely({"60": 1.0})

    with serving(rate) as fake:
        words = [sys.executable, "-c", SCRIPT, fake.base_url]
        first = subprocess.Popen(words)
        while len(fake.requests) < 10:
            time.sleep(0.005)
        first.send_signal(signal.SIGKILL)
        first.wait()
        answered = len(fake.requests)
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str([60.0] * 40)
        assert answered < 40
        # Only what was on its way when the process died is asked a second time.
        assert len(fake.requests) <= 40 + 2
        asked = Counter(request["messages"][0]["content"] for request in fake.requests)
        assert len(asked) == 40
        before = len(fake.requests)
        subprocess.run(words, capture_output=True, check=True)
        assert len(fake.requests) == before


def test_no_key_is_in_any_file(high, answers, monkeypatch, tmp_path):
    key = "my-very-own-key"
    monkeypatch.setenv("MY_KEY", key)

    def echo(body):
        if "Reply 1" in body["messages"][0]["content"]:
            raise failed(500, f"your key is {key}")
        return {**likely({"60": 0.5, key: 0.5}), "echo": key}

    monkeypatch.setattr("personality_vector.subject.endpoint._FIRST_PAUSE", 0.001)
    with serving(echo) as fake:
        judge = EndpointJudge(model="j", base_url=fake.base_url, api_key_env="MY_KEY", retries=1)
        scores = judge.billed_to(tmp_path)(high, answers("Reply 0", "Reply 1"))
    assert fake.requests[0]["key"] == f"Bearer {key}"
    assert "your key is ***" in scores[1].reason
    files = [path for path in cache_folder("endpoint").rglob("*") if path.is_file()]
    assert files
    assert not any(key.encode() in path.read_bytes() for path in files)


def test_a_model_that_writes_digit_by_digit_is_found_out_at_once(high, answers):
    """As many open models do: the 7 of 70 is a token of its own."""
    digits = {"7": 0.5, "8": 0.2, "6": 0.1, " 5": 0.05, "1": 0.05, "Sorry": 0.05}
    with serving(lambda _: likely(digits)) as fake:
        judge = EndpointJudge(model="j", base_url=fake.base_url)
        with pytest.raises(ModelError, match="writes numbers digit by digit"):
            judge(high, answers(*map(str, range(20))))
        assert len(fake.requests) == 1
        fives = EndpointJudge(model="j", base_url=fake.base_url, scale="1-5")
        assert fives(high, answers("I love parties."))[0].value is None
    with serving(lambda _: likely({**digits, "70": 0.01})) as fake:
        judge = EndpointJudge(model="j", base_url=fake.base_url)
        assert judge(high, answers("I love parties."))[0].value > 5
