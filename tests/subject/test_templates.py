"""A chat template is a program of somebody else: it gets 5 seconds and 256 MB, and may fail."""

import time

import pytest

from personality_vector.errors import DataError
from personality_vector.subject.chat import question, render
from personality_vector.subject.models import load_tokenizer

LOOPS = "{%- for a in range(99999) -%}{%- for b in range(99999) -%}{%- endfor -%}{%- endfor -%}"
LARGE = {
    "repeated": "{{ 'x' * 5000000000 }}",
    "a constant": "{{ none in messages[0].content }}{{ ('x' * 2000000000) | upper }}",
    "padded": "{{ 'x'.ljust(5000000000) }}",
    "a list": "{{ ([0] * 2000000000) | length }}",
    "doubled": "{%- set n = namespace(x='x') -%}{%- for a in range(40) -%}"
    "{%- set n.x = n.x ~ n.x -%}{%- endfor -%}{{ n.x }}",
}
WRONG = {
    "1/0": "{{ 1 / 0 }}",
    "no such filter": "{{ 1 | nothing }}",
    "of nothing": "{{ nothing.at.all }}",
    "too deep": "{%- macro f(x) -%}{{ f(x) }}{%- endmacro -%}{{ f(1) }}",
    "a type": "{{ 'a' + 1 }}",
    "an index": "{{ messages[99].content }}",
    "not a template": "{% for %}",
    "out of the sandbox": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
}


@pytest.fixture
def tokenizer(pico):
    return load_tokenizer(pico("llama"))


@pytest.mark.parametrize("template", LARGE.values(), ids=LARGE)
def test_a_template_that_fills_the_memory_is_refused(tokenizer, template):
    tokenizer.chat_template = template
    with pytest.raises(DataError, match="template takes too much memory"):
        render(tokenizer, question("Hi?"))


@pytest.mark.slow
def test_a_template_that_loops_is_refused_after_some_seconds(tokenizer):
    tokenizer.chat_template = LOOPS
    begun = time.monotonic()
    with pytest.raises(DataError, match="template takes too much time"):
        render(tokenizer, question("Hi?"))
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize("template", WRONG.values(), ids=WRONG)
def test_a_template_that_fails_is_a_data_error_of_one_line(tokenizer, template):
    tokenizer.chat_template = template
    try:
        render(tokenizer, question("Hi?"))
    except DataError as error:
        said = str(error)
    else:
        said = "the chat template refuses a chat of"  # jinja prints nothing for nothing
    assert said.startswith("the chat template refuses a chat of")
    assert "\n" not in said
