"""What goes over the wire to a server, and what is made of its answers."""

import math
import sys
import traceback
from datetime import UTC, datetime, timedelta

import pytest

from personality_vector.errors import CheckpointError, ModelError, RecipeError
from personality_vector.lab import cache_folder
from personality_vector.subject.endpoint import Endpoint, Limits, UnansweredError
from personality_vector.subject.responses import Responses
from tests.fake_endpoint import Fault, failed, likely, said, serving

ASKED = [{"role": "user", "content": "How much?"}]


def test_the_first_token_is_asked_for_as_the_paper_does(monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    with serving(lambda _: likely({"87": 0.5, "9": 0.25, "no": 0.125})) as fake:
        found = Endpoint("judge-1", fake.base_url, "MY_KEY").first_token(ASKED)
    assert found == pytest.approx({"87": 0.5, "9": 0.25, "no": 0.125})
    (request,) = fake.requests
    assert request["at"] == "/v1/chat/completions"
    assert request["key"] == "Bearer secret"
    assert request["messages"] == ASKED
    wanted = {"max_tokens": 1, "temperature": 0, "seed": 0, "logprobs": True, "top_logprobs": 20}
    assert {key: request[key] for key in wanted} == wanted
    assert not request.get("stream")
    assert request["model"] == "judge-1"


def test_two_tokens_of_one_text_are_added_up():
    choice = likely({"5": 0.25, "4": 0.25})
    twice = choice["logprobs"]["content"][0]["top_logprobs"]
    twice.append({"token": "5", "logprob": math.log(0.125), "bytes": None})
    with serving(lambda _: choice) as fake:
        found = Endpoint("j", fake.base_url).first_token(ASKED)
    assert found == pytest.approx({"5": 0.375, "4": 0.25})


def test_a_server_without_log_probabilities_is_refused():
    with (
        serving(lambda _: said("87")) as fake,
        pytest.raises(ModelError, match=r"no log-probabilities.*top_logprobs"),
    ):
        Endpoint("j", fake.base_url).first_token(ASKED)


def test_the_schema_is_sent_and_the_text_comes_back():
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    with serving(lambda _: said('{"a": "b"}')) as fake:
        assert Endpoint("j", fake.base_url).write(ASKED, "thing", schema) == '{"a": "b"}'
    form = fake.requests[0]["response_format"]
    assert form["type"] == "json_schema"
    assert form["json_schema"] == {"name": "thing", "strict": True, "schema": schema}


def test_a_reply_that_was_cut_off_is_refused():
    with (
        serving(lambda _: said('{"a":', finish_reason="length")) as fake,
        pytest.raises(ModelError, match="no complete reply: it ended by length"),
    ):
        Endpoint("j", fake.base_url).write(ASKED, "thing", {})


def test_an_error_of_the_server_is_one_sentence():
    def refuse(_):
        raise ValueError("no such model here")

    with serving(refuse) as fake, pytest.raises(ModelError) as caught:
        Endpoint("j", fake.base_url).first_token(ASKED)
    assert "j at http://127.0.0.1" in str(caught.value)
    assert "no such model here" in str(caught.value)


def test_openai_itself_needs_a_key_and_a_server_of_ones_own_does_not(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(RecipeError, match="OPENAI_API_KEY is not set"):
        Endpoint("gpt")
    with serving(lambda _: likely({"1": 0.5})) as fake:
        Endpoint("gpt", fake.base_url).first_token(ASKED)


def test_without_the_package_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(RecipeError, match=r"pip install 'personality-vector\[endpoint\]'"):
        Endpoint("gpt", "http://localhost/v1")


@pytest.fixture
def hurried(monkeypatch):
    """Let nobody wait long before the next try, and note how long they would have waited."""
    pauses = []
    monkeypatch.setattr(
        "personality_vector.subject.endpoint.wait", lambda seconds, _: pauses.append(seconds)
    )
    return pauses


def endpoint(fake, **limits):
    return Endpoint("judge-1", fake.base_url, "MY_KEY", Limits(**{"timeout": 5.0} | limits))


def failing(*faults):
    """Answer with each fault once, and then as a judge should."""
    left = list(faults)

    def answer(_):
        if left:
            raise left.pop(0)
        return likely({"7": 1.0})

    return answer


TRUNCATED = Fault(body={"choices": [{"index": 0, "message": {"content": "7"}}]}, sent=0.5)
PASSING = {
    "too many requests": (failed(429, "slow down"), "it answered 429: .*slow down"),
    "an error of the server": (failed(500, "oops"), "it answered 500: .*oops"),
    "a gateway": (Fault(502, b"<html>bad gateway</html>"), "it answered 502"),
    "broken JSON": (Fault(body=b'{"choices": [{"ind'), "its response is not a completion"),
    "another JSON": (Fault(body={"error": {"message": "no"}}), ".*not a completion: .*no"),
    "not JSON": (Fault(body=b"hello"), ".*not a completion: 'hello'"),
    "a truncated body": (TRUNCATED, "the connection broke"),
    "a reset": (Fault(resets=True), "the connection broke"),
    "NaN": (Fault(body=b'{"choices": [{"message": {}, "logprobs": NaN}]}'), ".*not a completion"),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_failure_that_passes_is_tried_again(hurried, name):
    fault, _ = PASSING[name]
    with serving(failing(fault, fault)) as fake:
        assert endpoint(fake).first_token(ASKED) == {"7": 1.0}
    assert len(fake.requests) == 3
    assert len(hurried) == 2


@pytest.mark.parametrize("name", PASSING)
@pytest.mark.usefixtures("hurried")
def test_a_failure_that_stays_is_a_reason_for_this_request_alone(name):
    fault, reason = PASSING[name]
    with serving(failing(*[fault] * 3)) as fake:
        asked = endpoint(fake, retries=2)
        with pytest.raises(UnansweredError, match=f"though the server was asked 3 times: {reason}"):
            asked.first_token(ASKED)
        assert asked.first_token(ASKED) == {"7": 1.0}
    assert len(fake.requests) == 4


@pytest.mark.usefixtures("hurried")
def test_a_slow_server_is_left_after_the_timeout():
    late = Fault(seconds=1.0)
    with serving(failing(late)) as fake:
        with pytest.raises(UnansweredError, match=r"once: it did not answer within 0.2 seconds"):
            endpoint(fake, timeout=0.2, retries=0).first_token(ASKED)
        assert endpoint(fake).first_token(ASKED) == {"7": 1.0}


def test_pauses_grow_with_jitter_and_respect_what_the_server_asks(hurried):
    with serving(failing(*[failed(503, "busy")] * 5)) as fake:
        endpoint(fake).first_token(ASKED)
    middle = [0.5 * 2**n for n in range(5)]
    assert all(m / 2 <= pause <= 1.5 * m for m, pause in zip(middle, hurried, strict=True))
    assert hurried != middle
    hurried.clear()
    later = (datetime.now(UTC) + timedelta(seconds=100)).strftime("%a, %d %b %Y %H:%M:%S GMT")
    faults = [failed(429, "wait", retry_after="30"), failed(429, "wait", retry_after=later)]
    with serving(failing(*faults)) as fake:
        endpoint(fake).first_token(ASKED)
    assert hurried[0] == 30
    assert 95 < hurried[1] <= 100


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (failed(401, "bad key"), "answered 401: .*bad key.*; set the right key in MY_KEY"),
        (failed(403, "not you"), "answered 403: .*may use this model"),
        (failed(404, "no model judge-1"), "answered 404: .*check the name of the model, and base_"),
        (failed(400, "logprobs is not supported"), "answered 400: .*logprobs is not supported"),
        (failed(429, "pay first", "insufficient_quota"), "answered 429: .*pay first"),
    ],
)
def test_a_failure_that_no_try_mends_stops_at_once_and_for_good(hurried, fault, says):
    with serving(failing(fault)) as fake:
        asked = endpoint(fake)
        for _ in range(2):
            with pytest.raises(ModelError, match=f"judge-1 at http://127.*: {says}") as caught:
                asked.first_token(ASKED)
            assert not isinstance(caught.value, UnansweredError)
    assert len(fake.requests) == 1
    assert hurried == []


def test_a_server_that_is_not_there_is_not_the_fault_of_an_answer(hurried):
    with serving(failing()) as fake:
        pass
    with pytest.raises(ModelError, match=r"cannot be reached .*; start the server, or check") as e:
        endpoint(fake, retries=2).first_token(ASKED)
    assert not isinstance(e.value, UnansweredError)
    assert len(hurried) == 2


@pytest.mark.usefixtures("hurried")
def test_what_one_prompt_is_refused_for_does_not_stop_the_others():
    long = failed(400, "too long", "context_length_exceeded")
    with serving(failing(long)) as fake, pytest.raises(UnansweredError, match="too long"):
        endpoint(fake).first_token(ASKED)
    faults = iter([None, failed(400, "I do not like this prompt"), None])

    def answer(_):
        if (fault := next(faults)) is not None:
            raise fault
        return likely({"7": 1.0})

    with serving(answer) as fake:
        asked = endpoint(fake)
        asked.first_token(ASKED)
        with pytest.raises(UnansweredError, match="I do not like this prompt"):
            asked.first_token(ASKED)
        asked.first_token(ASKED)


def test_a_refusal_and_an_empty_reply_are_reasons():
    refusal = {**said(""), "message": {"role": "assistant", "refusal": "I must not judge."}}
    filtered = said("", finish_reason="content_filter")
    silent = {**said(""), "logprobs": {"content": [], "refusal": None}}
    for choice, reason in (
        (refusal, "the judge refused: I must not judge."),
        (filtered, "its filter stopped the reply"),
        (silent, "the judge said nothing"),
    ):
        with serving(lambda _, choice=choice: choice) as fake:
            with pytest.raises(UnansweredError, match=reason):
                endpoint(fake).first_token(ASKED)
            assert len(fake.requests) == 1


def test_no_more_than_so_many_requests_begin_in_a_minute(hurried):
    with serving(failing()) as fake:
        asked = endpoint(fake, per_minute=120)
        for _ in range(3):
            asked.first_token(ASKED)
    assert hurried[0] <= 0
    assert hurried[1:] == pytest.approx([0.5, 1.0], abs=0.4)


@pytest.mark.usefixtures("hurried")
def test_a_server_that_echoes_the_key_does_not_get_it_into_a_message(monkeypatch):
    key = "my-very-own-key"
    monkeypatch.setenv("MY_KEY", key)
    echo = {"message": f"Incorrect API key provided: {key}", "type": "bad"}
    refusal = {**said(""), "message": {"role": "assistant", "refusal": f"Not with {key}."}}
    for fault in (Fault(401, {"error": echo}), Fault(500, {"error": echo}), Fault(body=echo)):
        with serving(failing(*[fault] * 2)) as fake, pytest.raises(ModelError) as caught:
            endpoint(fake, retries=1).first_token(ASKED)
        assert "***" in str(caught.value)
        shown = "".join(traceback.format_exception(caught.value))
        assert key not in shown
    told = pytest.raises(UnansweredError, match=r"Not with \*\*\*")
    with serving(lambda _: refusal) as fake, Responses.open() as kept, told:
        endpoint(fake).first_token(ASKED, kept)
    files = [path for path in cache_folder("endpoint").rglob("*") if path.is_file()]
    assert files
    assert not any(key.encode() in path.read_bytes() for path in files)


def test_what_was_answered_is_not_asked_again(monkeypatch):
    with serving(failing()) as fake, Responses.open() as kept:
        first = endpoint(fake).first_token(ASKED, kept)
        monkeypatch.setenv("MY_KEY", "another")
        assert endpoint(fake, timeout=9.0).first_token(ASKED, kept) == first
        assert len(fake.requests) == 1
        Endpoint("judge-2", fake.base_url).first_token(ASKED, kept)
        endpoint(fake).first_token([{"role": "user", "content": "How little?"}], kept)
    assert len(fake.requests) == 3


def test_a_damaged_file_of_responses_is_named():
    path = cache_folder("endpoint") / "responses.sqlite"
    with serving(failing()):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"not a database" * 100)
        with pytest.raises(CheckpointError, match=r"is not a file of responses .*delete it"):
            Responses.open().__enter__()
        path.unlink()


@pytest.mark.usefixtures("hurried")
def test_the_log_probabilities_of_a_later_reply_may_fail():
    choices = iter([likely({"7": 1.0}), said("7"), likely({"8": 1.0})])
    with serving(lambda _: next(choices)) as fake:
        asked = endpoint(fake)
        assert asked.first_token(ASKED) == {"7": 1.0}
        assert asked.first_token(ASKED) == {"8": 1.0}


@pytest.mark.parametrize("key", ["a key", "k\u00e9y-of-mine", "one\ntwo"])
def test_what_is_no_key_is_refused_by_its_name(monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(RecipeError, match="variable MY_KEY holds more than an API key") as caught:
        Endpoint("m", "http://localhost/v1", "MY_KEY")
    assert key not in str(caught.value)


def test_an_address_without_its_protocol_is_refused():
    with pytest.raises(RecipeError, match="base_url must begin with http:// or https://"):
        Endpoint("m", "localhost:8000/v1")


def test_a_prompt_that_is_too_long_is_refused_alone_even_if_it_is_the_first(hurried):
    long = failed(400, "This model's maximum context length is 10 tokens.")
    with serving(failing(long)) as fake:
        asked = endpoint(fake)
        with pytest.raises(UnansweredError, match="maximum context length is 10 tokens"):
            asked.first_token(ASKED)
        assert asked.first_token(ASKED) == {"7": 1.0}
    assert hurried == []


def test_nobody_waits_for_ever(hurried):
    with serving(failing(failed(429, "wait", retry_after="inf"))) as fake:
        endpoint(fake).first_token(ASKED)
    assert hurried == [3600]


@pytest.mark.usefixtures("hurried")
def test_no_part_of_a_key_is_left_where_a_message_is_cut(monkeypatch):
    key = "0123456789abcdef" * 4
    monkeypatch.setenv("SECRET", key)
    for length in (20, 40, 60, 320, 360, 380):
        text = "x" * length + key
        for fault in (failed(500, text), Fault(body=text.encode()), failed(401, text)):
            with serving(failing(fault)) as fake, pytest.raises(ModelError) as caught:
                Endpoint("m", fake.base_url, "SECRET", Limits(retries=0)).first_token(ASKED)
            assert key[:6] not in str(caught.value)
