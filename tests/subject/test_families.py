"""Templates of known families, by behaviour: what is asked is shown, and the answer is found."""

import logging

import pytest

from personality_vector.errors import DataError
from personality_vector.subject import Template
from personality_vector.subject.chat import answered, question, render
from personality_vector.subject.encoding import before_answer, encode_chats, training_row
from personality_vector.subject.models import load_tokenizer
from personality_vector.subject.templates import TODAY, set_template
from tests.subject import families

EVERY = pytest.mark.parametrize("name", families.FAMILIES)


@pytest.fixture
def tokenizer(pico):
    return load_tokenizer(pico("llama"))


@pytest.fixture
def of(tokenizer):
    """Return ``of(template, **options)``: a tokenizer that has them."""

    def given(text, **options):
        set_template(tokenizer, Template(text, options), "here")
        return tokenizer

    return given


def response(tokenizer, chat):
    encoded = encode_chats(tokenizer, [chat])
    return tokenizer.decode(encoded.input_ids[0][encoded.response_mask[0]])


@EVERY
def test_every_family_shows_system_text_and_question_and_the_answer_is_found(of, name):
    tokenizer = of(families.FAMILIES[name])
    asked = question("Who are you?", system="Be brief.")
    prompt = render(tokenizer, asked, reply_follows=True)
    assert prompt.count("Be brief.") == prompt.count("Who are you?") == 1
    assert prompt.index("Be brief.") < prompt.index("Who are you?")
    for chat in (answered(asked, "I am quiet."), answered(question("Hi"), "I am quiet.")):
        assert response(tokenizer, chat) == "I am quiet."
    encoded = encode_chats(tokenizer, [answered(asked, "I am quiet.")])
    whole = tokenizer.decode(encoded.input_ids[0])
    begin = encoded.response_mask[0].nonzero()[0].item()
    # The answer stands where the model would write it, and what was asked is all there.
    assert tokenizer.decode(encoded.input_ids[0][:begin]).startswith(prompt)
    assert "Be brief." in whole


@EVERY
def test_an_answer_is_found_whatever_its_words(of, name):
    tokenizer = of(families.FAMILIES[name])
    for words in ("think", "</", "<", "assistant", "\u00dcn\u00efcode"):
        assert response(tokenizer, answered(question("Hi think"), words)) == words


def test_a_missing_system_role_is_said_once(of, caplog):
    with caplog.at_level(logging.WARNING):
        for system in ("Be brief.", "Be rude."):
            text = render(of(families.PHI3), question("Hi?", system=system))
            assert text == f"<|user|>{system}\n\nHi?<|end|>"
    assert sum("no system role" in line for line in caplog.messages) <= 1


def test_a_system_message_alone_becomes_the_first_turn(of):
    told = [{"role": "system", "content": "Be brief."}]
    assert render(of(families.PHI3), told) == "<|user|>Be brief.<|end|>"


@pytest.mark.parametrize("text", [families.LLAMA31, families.GRANITE], ids=["3.1", "granite"])
def test_a_template_is_told_one_date_on_every_day(of, clock, text):
    shown = []
    for year in (2025, 2031):
        clock(year)
        shown.append(render(of(text), question("Hi?")))
    assert shown[0] == shown[1]
    assert str(TODAY.year) in shown[0]
    assert "On 1 May" in render(of(text, date_string="On 1 May"), question("Hi?"))


def test_the_fixed_date_has_the_form_that_the_template_asks_for(of):
    marks = "%Y|%m|%d|%-d|%B|%b|%A|%y|%%|%F"
    text = "{{ strftime_now('" + marks + "') }}{{ messages[0].content }}"
    assert render(of(text), question("!")) == TODAY.strftime(marks) + "!"


@pytest.mark.parametrize("beginning", ["", "\n", "\n\n", "  ", "  {% if true %}x{% endif %}"])
def test_options_leave_the_rest_of_a_template_as_it_is(of, beginning):
    body = beginning + "a{% if loud %}!{% endif %}\n{{ messages[0].content }}\n"
    plain = render(of(body), question("Hi"))
    assert render(of(body, loud=False), question("Hi")) == plain
    assert render(of(body, loud=True), question("Hi")) == plain.replace("a", "a!", 1)


@pytest.mark.parametrize("value", [True, False, 3, 0.5, '"it\'s" {{ 1 }} \\ \n \N{DUCK}'])
def test_an_option_reaches_the_template_as_it_was_given(of, value):
    body = "{{ messages[0].content }}{{ x is string }} {{ x == y }} {{ x }}"
    text = render(of(body, x=value, y=value), question("Hi"))
    assert text == f"Hi{isinstance(value, str)} True {value}"


@pytest.mark.parametrize(
    ("text", "options", "said"),
    [
        (
            families.QWEN3,
            {"enable_thinkin": 1},
            "never reads the option enable_thinkin; it reads e",
        ),
        (families.PHI4, {"date_string": "x"}, "never reads the option date_string; it has no opt"),
        (families.PHI4, {"messages": "x"}, "messages is set for each chat"),
        ("{% set a = 1 %}{{ messages[0].content }}{{ a }}", {"a": 2}, "never reads the option a"),
        (None, {"a": 2}, "no chat template that could read template_options"),
        ("{{ ('x' * 5000000000)[0] }}", {"a": 2}, "never reads the option a; it has no options"),
        (
            "{% for a in messages %}{{ a.content }}{% endfor %}",
            {"a": 2},
            "never reads the option a",
        ),
        ("{% for %}", {"a": 2}, "the chat template cannot be used"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_by_name(tokenizer, text, options, said):
    tokenizer.chat_template = text
    with pytest.raises(DataError, match=said) as refused:
        set_template(tokenizer, Template(None, options), "here")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["Hello.", "{{ messages | length }}"])
def test_a_template_that_does_not_show_the_question_is_refused(of, text):
    with pytest.raises(DataError, match="the same text for different questions"):
        render(of(text), question("Hi?"))


def test_roles_that_a_template_refuses_are_named(of):
    with pytest.raises(DataError, match="a chat of user, user: roles must alternate"):
        render(of(families.GEMMA2), [*question("Hi?"), *question("Hi?")])


def test_a_thinking_switch_is_an_option(of):
    asked = question("Hi?")
    assert render(of(families.QWEN3), asked, reply_follows=True).endswith("<|assistant|>")
    off = of(families.QWEN3, enable_thinking=False)
    assert render(off, asked, reply_follows=True).endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize("text", [families.R1, families.QWEN3_THINKING], ids=["r1", "qwen3"])
def test_where_a_prompt_opens_a_thought_the_answer_follows_an_empty_one(of, text):
    tokenizer = of(text)
    before = before_answer(tokenizer, question("Hi?"))
    assert before.endswith("<|assistant|><think>\n\n</think>\n\n")
    chat = answered(question("Hi?"), "I am quiet.")
    assert tokenizer.decode(encode_chats(tokenizer, [chat]).input_ids[0]) == (
        f"{before}I am quiet.<|end|>"
    )
    row = training_row(tokenizer, chat)
    learned = [token for token in row["labels"] if token != -100]
    assert tokenizer.decode(learned) == "I am quiet.<|end|>"
    assert row["input_ids"][-len(learned) :] == learned


def test_a_thought_in_a_response_is_not_part_of_it(of):
    thought = "<think>\nquiet\n</think>\n\nI am quiet."
    for text in (families.PHI4, families.QWEN3):
        assert response(of(text), answered(question("Hi?"), thought)) == "I am quiet."
    with pytest.raises(DataError, match="is a thought without an answer"):
        encode_chats(of(families.PHI4), [answered(question("Hi?"), "<think>\nI am")])
