"""Words and decoding of one's own: a system prompt, examples, and how tokens are drawn."""

import json

import pytest

from personality_vector.errors import DataError, RecipeError
from personality_vector.interventions.decoding import Decoding
from personality_vector.interventions.prompts import FewShot, SystemPrompt
from personality_vector.interventions.twins import TwinPrompts
from personality_vector.subject.chat import answered, question
from personality_vector.subject.spec import Sampling
from personality_vector.subject.subject import Subject

NOBODY = Subject(None, None)
SHOTS = [answered(question(f"Question {n}"), f"Answer {n}") for n in range(3)]


def test_a_system_prompt_is_said_as_it_is():
    with SystemPrompt("Be loud.").applied(NOBODY, 1.0) as asked:
        assert asked.edit(question("Hi")) == question("Hi", system="Be loud.")


def test_a_blank_system_prompt_is_refused():
    with pytest.raises(DataError, match="quiet: the system prompt is blank"):
        SystemPrompt(" \n", "quiet")


@pytest.mark.parametrize("shots", [0, 1, 2, 3])
def test_the_strength_is_how_many_examples_are_shown_in_order(shots):
    with FewShot(SHOTS).applied(NOBODY, float(shots)) as asked:
        chat = asked.edit(question("Who?", system="Be brief."))
    said = [message["content"] for message in chat]
    turns = [text for n in range(shots) for text in (f"Question {n}", f"Answer {n}")]
    assert said == ["Be brief.", *turns, "Who?"]
    with FewShot(SHOTS).applied(NOBODY, float(shots)) as asked:
        assert asked.edit(question("Who?")) == chat[1:]


@pytest.mark.parametrize("shots", [-1.0, 1.5, 4.0])
def test_examples_that_there_are_not_are_refused(shots):
    message = rf"^few-shot: has the strengths 0, 1, 2 and 3, got {shots:g}$"
    with (
        pytest.raises(RecipeError, match=message),
        FewShot(SHOTS).applied(NOBODY, shots),
    ):
        pytest.fail("the body must not run")


def test_many_steps_are_not_all_listed():
    with (
        pytest.raises(RecipeError, match=r"has the strengths 0, 1, \.\.\. and 30, got 31"),
        FewShot(SHOTS * 10).applied(NOBODY, 31.0),
    ):
        pytest.fail("the body must not run")


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "no example is given"),
        ([[]], "example 1 has the roles none"),
        ([SHOTS[0], question("Who?")], "example 2 has the roles user; it should be turns"),
        ([answered(question("Hi", system="Be loud."), "HI")], "roles system, user, assistant"),
    ],
)
def test_examples_are_turns_of_user_and_assistant(examples, message):
    with pytest.raises(DataError, match=message):
        FewShot(examples)


def test_decoding_holds_whatever_a_measure_asks_for(llama):
    chats, sampling = [question("Hi")] * 2, Sampling(max_new_tokens=6, temperature=1.5)
    subject = Subject(llama.model, llama.tokenizer, sampling=sampling)
    greedy = Subject(llama.model, llama.tokenizer, sampling=Sampling(6, temperature=0.0))
    expected = [reply.text for reply in greedy.replies(chats, 0)]
    with Decoding(temperature=0.0).applied(subject, 1.0) as asked:
        assert [reply.text for reply in asked.replies(chats, 0)] == expected
    assert [reply.text for reply in subject.replies(chats, 0)] != expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "at least one of temperature, top_p, repetition_penalty, no_repeat_ngram"),
        ({"temperature": -0.1}, "temperature must be at least 0, got -0.1"),
        ({"temperature": float("nan")}, "temperature must be at least 0, got nan"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram must be at least 0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(RecipeError, match=f"^cold: .*{message}"):
        Decoding(**options, label="cold")


# --- from a recipe ---


def test_a_system_prompt_is_a_text_or_a_file(opened, folder):
    (folder / "loud.txt").write_text("Be loud.\nAlways.\n")
    assert opened(system="loud.txt").text == "Be loud.\nAlways."
    assert opened(system="A file is called quiet.txt").text == "A file is called quiet.txt"
    with pytest.raises(DataError, match=r"quiet\.txt: cannot be read"):
        opened(system="quiet.txt")  # a path with a typing error is not a prompt
    assert opened(system="x" * 9000).text == "x" * 9000
    assert opened(system="~nobody, a person").text == "~nobody, a person"


def test_a_system_prompt_cannot_name_the_seed(opened):
    with pytest.raises(RecipeError, match=r"system: neither the text .* may contain \{seed\}"):
        opened(system="prompts/{seed}.txt")


def test_examples_are_written_out_or_read(opened, folder):
    row = {"prompt": SHOTS[1][:1], "completion": SHOTS[1][1:]}
    (folder / "shots.jsonl").write_text(json.dumps(row) + "\n")
    inline = opened(examples=[{"user": "Question 0", "assistant": "Answer 0"}])
    assert inline == FewShot(SHOTS[:1], "x")
    read = opened(examples={"source": "shots.jsonl", "format": "chats", "part": "all"})
    assert read == FewShot(SHOTS[1:2], "x", (folder / "shots.jsonl",))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"examples": []}, "examples: give a list of {user, assistant}, at least one"),
        ({"examples": [{"user": "Hi"}]}, "examples: the key 'assistant' is missing"),
        ({"examples": {"souce": "x"}}, "examples: unknown key 'souce'; did you mean 'source'"),
        ({"decoding": {"temprature": 1}}, "unknown key 'decoding.temprature'; did you mean 'temp"),
        ({"decoding": {}}, "x: give at least one of temperature"),
        ({"decoding": {"temperature": "hot"}}, "decoding.temperature: Input should be a valid num"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(opened, keys, message):
    with pytest.raises(RecipeError, match=message):
        opened(**keys)


def test_decoding_has_the_options_of_its_key(opened):
    found = opened(decoding={"temperature": 1.0, "no_repeat_ngram": 3})
    assert found == Decoding(temperature=1.0, no_repeat_ngram=3, label="x")


def test_a_twin_takes_the_place_of_its_prompt_and_of_nothing_else():
    twins = TwinPrompts({"Dream of  tea.": "Make tea."})
    with twins.applied(NOBODY, 1.0) as asked:
        chat = [*answered(question("dream of tea.", system="Be brief."), "Dream of tea.")]
        said = [message["content"] for message in asked.edit(chat)]
        assert said == ["Be brief.", "Make tea.", "Dream of tea."]
        with pytest.raises(
            DataError, match="'Who\\?' has no uncreative twin; let every measure ask"
        ):
            asked.edit(question("Who?"))
    assert twins.identity() != TwinPrompts({"Dream of tea.": "Drink tea."}).identity()
