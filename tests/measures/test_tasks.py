"""Tasks: the choice that one sequence after the other finds likeliest, and what an edit breaks."""

import importlib.util
import json
import math
import re
from collections import Counter
from dataclasses import replace

import pytest
import torch

from personality_vector.data.tasks import TaskItem, read_task
from personality_vector.errors import DataError, NonFiniteError, RecipeError
from personality_vector.lab import EVERYDAY, builtin
from personality_vector.measures.tasks import OwnTask, Tasks, TasksSpec
from personality_vector.numeric.statistics import of_share
from personality_vector.subject.chat import question

WORDS = ["cow", "a dog", "the moon", "honey", "four", "blue", "at school", "Paris"]
ITEMS = [
    TaskItem(
        id=f"item {n}",
        question=f"What is {WORDS[n % 8]} number {n}?",
        choices=tuple(WORDS[(n + 3 * k) % 8] for k in range(4)),
        answer=0,
    )
    for n in range(24)
]


def picks(tiny, **given):
    """Return the choice of each item: the answer is where it is counted as right."""
    right = {}
    for place in range(4):
        asked = OwnTask("t", [item.model_copy(update={"answer": place}) for item in ITEMS])
        for sample in asked.samples(tiny.subject(**given), 8):
            if sample.value:
                assert right.setdefault(sample.item, place) == place
    return [right[item.id] for item in ITEMS]


def restated(tiny, item, prompt):
    """Return the choice with the highest sum of log-probabilities, one sequence after the other."""
    sums = []
    for choice in item.choices:
        tokens, log_probs = tiny.response_log_probs(prompt, choice)
        sums.append(math.fsum(log_probs[at, token].item() for at, token in enumerate(tokens)))
    return sums.index(max(sums))


def keyed(chosen, wrong):
    """Return the items with the chosen answers as the right ones, but for the last ``wrong``."""
    shift = [0] * (len(ITEMS) - wrong) + [1] * wrong
    return [
        item.model_copy(update={"answer": (pick + by) % 4})
        for item, pick, by in zip(ITEMS, chosen, shift, strict=True)
    ]


def test_an_answer_is_the_choice_that_single_sequences_find_likeliest(tiny):
    assert picks(tiny) == [restated(tiny, item, question(item.question)) for item in ITEMS]


def test_the_edit_of_an_intervention_is_read(tiny):
    def edit(chat):
        return [{"role": "system", "content": "You are a cow."}, *chat]

    chosen = picks(tiny, edit=edit)
    prompts = [question(item.question, system="You are a cow.") for item in ITEMS]
    assert chosen == [restated(tiny, i, p) for i, p in zip(ITEMS, prompts, strict=True)]
    assert chosen != picks(tiny)


def test_kept_and_fixed_are_shares_of_what_the_base_answers_rightly_and_wrongly(tiny):
    measure = Tasks([OwnTask("t", keyed(picks(tiny), wrong=6))]).prepare(tiny.subject())
    before = tiny.readings(measure)
    with torch.no_grad():
        tiny.model.lm_head.weight.mul_(torch.linspace(-1.0, 2.0, 32))
    after = tiny.readings(measure)
    answers = [item.answer for item in measure.tasks[0].items]
    is_right = [a == pick for a, pick in zip(answers, picks(tiny), strict=True)]
    expected = {"": is_right, ".kept": is_right[:18], ".fixed": is_right[18:]}
    assert 0 < sum(is_right[:18]) < 18
    for number, values in expected.items():
        reading = after[f"tasks.t.accuracy{number}", ""]
        assert (reading.n, reading.unscored) == (len(values), 0)
        assert reading.value == sum(values) / len(values)
        assert (reading.low, reading.high) == of_share(reading.value, reading.n)
    assert [before[f"tasks.t.accuracy{n}", ""].value for n in expected] == [0.75, 1.0, 0.0]


def test_every_item_is_an_observation_under_its_id(tiny):
    measure = Tasks([OwnTask("t", keyed(picks(tiny), wrong=3))]).prepare(tiny.subject())
    found = measure.collect(tiny.subject(), 0).observations
    assert [(o.measure, o.item) for o in found] == [("tasks.t.accuracy", i.id) for i in ITEMS]
    assert [o.value for o in found] == [1.0] * 21 + [0.0] * 3


def test_a_task_on_which_the_base_guesses_is_refused_with_both_numbers(tiny):
    task = OwnTask("hard", keyed(picks(tiny), wrong=15))
    says = r"hard: the base answers 38% of 24 items rightly .*21% to 57%.* guessing gives 25%: such"
    with pytest.raises(DataError, match=says):
        Tasks([task]).prepare(tiny.subject())
    Tasks([replace(task, items=keyed(picks(tiny), wrong=10))]).prepare(tiny.subject())


def test_two_tasks_of_one_name_are_refused(tiny):
    task = OwnTask("t", keyed(picks(tiny), wrong=0))
    with pytest.raises(DataError, match=r"two tasks are called t.accuracy; rename a file"):
        Tasks([task, task]).prepare(tiny.subject())


def test_a_broken_model_gives_no_number(tiny):
    with torch.no_grad():
        tiny.model.lm_head.weight[7] = math.nan
    with pytest.raises(NonFiniteError, match=r"t item \d+: the model gives .* of nan"):
        OwnTask("t", ITEMS).samples(tiny.subject(), 8)


def test_without_the_reference_nothing_is_measured(tiny):
    with pytest.raises(DataError, match=r"call prepare\(\) first"):
        Tasks([OwnTask("t", ITEMS)]).collect(tiny.subject(), 0)


def test_tasks_of_the_harness_say_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(RecipeError, match=r"pip install 'personality-vector\[eval\]'"):
        TasksSpec(harness=("arc_easy",)).open()


ROW = {"id": "a", "question": "Who?", "choices": ["I", "you"], "answer": 1}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "has no items; a row is {id, question, choices, answer}"),
        ([ROW, ROW], "two items have the same id: a"),
        ([{**ROW, "answer": 2}], "line 1: answer is 2, and the 2 choices have places 0 to 1"),
        ([{**ROW, "choices": ["I", "I"]}], "line 1: choices: a value is given twice"),
        ([{**ROW, "choices": ["I"]}], "line 1: choices: "),
        ([{**ROW, "question": " "}], "line 1: question: needs at least one word"),
        ([{**ROW, "label": 1}], "line 1: unknown key 'label'"),
    ],
)
def test_a_wrong_file_is_refused_in_one_sentence(tmp_path, rows, says):
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as refused:
        read_task(file)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_shipped_questions_have_one_right_answer_each_and_no_favoured_place():
    items = read_task(builtin(EVERYDAY))
    assert len(items) >= 300
    assert len({item.question for item in items}) == len(items)
    assert {len(item.choices) for item in items} == {4}
    places = Counter(item.answer for item in items)
    assert max(places.values()) - min(places.values()) <= 1
    asked = {item.question: item.choices[item.answer] for item in items}
    for text, answer in asked.items():
        if found := re.fullmatch(r"What is (\d+) (plus|times) (\d+)\?", text):
            a, b = int(found[1]), int(found[3])
            assert int(answer) == (a + b if found[2] == "plus" else a * b)
        elif found := re.fullmatch(r"Which letter of the alphabet comes right after (.)\?", text):
            assert ord(answer) == ord(found[1]) + 1
