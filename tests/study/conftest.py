"""Recipes of studies on pico llama, with a small file of statements and a steering vector."""

import json
from itertools import product
from pathlib import Path

import pytest

from personality_vector.measures.spec import QUESTION
from personality_vector.steering import SteeringVector
from personality_vector.study.recipe import SweepRecipe
from personality_vector.subject.models import load_model, load_tokenizer

TRAITS = ("extraversion", "openness")
WORDS = {"high": "I love {} and I talk at every party", "low": "I am quiet about {} alone"}
TOPICS = ("music", "people", "books", "tea", "rain", "games")


@pytest.fixture(autouse=True)
def _helpers_import_the_tests(monkeypatch):
    """Let the processes that a study starts import what a test defines."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2])


@pytest.fixture
def base(pico):
    """Return the model of a study."""
    return pico("llama")


@pytest.fixture
def log(tmp_path):
    """Return the file in which fakes note what they are asked."""
    return tmp_path / "log.txt"


@pytest.fixture(scope="session")
def inputs(tmp_path_factory, pico):
    """Return a folder with ``statements.jsonl`` and ``vector``."""
    folder = tmp_path_factory.mktemp("inputs")
    rows = [
        {
            "trait": trait,
            "level": level,
            "statement": f"{WORDS[level].format(topic)} {trait[:4]}",
            "part": "held_out" if index < 2 else "train",
        }
        for trait, level in product(TRAITS, WORDS)
        for index, topic in enumerate(TOPICS)
    ]
    (folder / "statements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model, tokenizer = load_model(pico("llama")), load_tokenizer(pico("llama"))
    chats = [
        [
            [
                {"role": "user", "content": "Who?"},
                {"role": "assistant", "content": words.format(topic)},
            ]
            for topic in TOPICS[:2]
        ]
        for words in WORDS.values()
    ]
    SteeringVector.extract(model, tokenizer, *chats, label="v").save(folder / "vector")
    return folder


@pytest.fixture(scope="session")
def measures():
    """Return ``measures(*traits)``: every kind of measure, of these traits."""

    def make(*traits):
        statements = {"statements": "statements.jsonl"}
        return [
            {"likelihood": {"traits": traits, **statements}},
            {
                "interview": {
                    "traits": traits,
                    "question": QUESTION,
                    "generation": {"max_new_tokens": 6, "samples": 2},
                    "judges": [{"classifier": statements}],
                }
            },
            "divergence",
            {"guards": statements},
        ]

    return make


@pytest.fixture(scope="session")
def recipe(inputs, measures, pico, pico_tuned):
    """Return ``recipe(kind, **changes)``: by default a sweep of weights and a prompt."""

    def make(kind=SweepRecipe, **changes):
        data = {
            "base": str(pico("llama")),
            "interventions": [
                {"label": "weights", "tuned": str(pico_tuned("llama"))},
                {"label": "prompt", "prompt": "extraversion:high"},
            ],
            "measures": measures(*TRAITS),
            "device": "cpu",
            "strengths": [1.0],
        } | changes
        return kind.parse(data, origin="test", folder=inputs)

    return make
