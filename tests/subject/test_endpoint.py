"""What goes over the wire to a server, and what is made of its answers."""

import math
import sys

import pytest

from personality_vector.errors import ModelError, RecipeError
from personality_vector.subject.endpoint import Endpoint
from tests.fake_endpoint import likely, said, serving

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
