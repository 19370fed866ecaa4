"""Semantic distance: the formula, and who embeds."""

import json
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch

from personality_vector.data.ideas import CRITERIA
from personality_vector.errors import DataError, ModelError
from personality_vector.judges.embedding import EmbeddingJudge
from personality_vector.lab import builtin
from personality_vector.subject.protocols import Answer, rated
from personality_vector.subject.subject import Subject

ORIGINALITY = CRITERIA["originality"]
DIRECTIONS = {"a cup": (1, 0), "drink": (4, 3), "a tiny boat": (0, 2), "a hat": (-3, 0)}


@pytest.fixture
def tasks(tmp_path):
    task = {"name": "mine", "version": "1", "request": "Uses of {item}?", "items": ["a cup"]}
    (tmp_path / "mine.yaml").write_text(json.dumps(task))
    return (tmp_path / "mine.yaml",)


def asked(*replies, question="Uses of a cup?"):
    return [Answer("mine-01", 0, question, reply) for reply in replies]


@pytest.fixture
def library(monkeypatch):
    """Put a library in place of sentence-transformers whose vectors are known."""

    class SentenceTransformer:
        def __init__(self, name):
            if name != "org/known":
                raise OSError(f"{name} is nowhere")

        def encode(self, texts, **_):
            return torch.tensor([DIRECTIONS[text] for text in texts], dtype=torch.bfloat16)

    module = ModuleType("sentence_transformers")
    module.__spec__ = ModuleSpec("sentence_transformers", None)
    module.SentenceTransformer = SentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)


@pytest.mark.usefixtures("library")
def test_the_score_is_the_mean_distance_of_the_ideas_from_the_item(tasks):
    judge = EmbeddingJudge(model="org/known", tasks=tasks).open()
    found = rated(judge, ORIGINALITY, asked("drink", "1. a tiny boat\n2. drink", "a hat", ""))
    expected = [0.2, (1.0 + 0.2) / 2, 2.0, None]
    assert [score.value for score in found] == [
        value if value is None else pytest.approx(value, abs=1e-6) for value in expected
    ]
    assert found[3].reason == "it holds no idea"
    with pytest.raises(DataError, match="rates answers for originality, and not for quality"):
        rated(judge, CRITERIA["quality"], [])
    with pytest.raises(ModelError, match=r"org/other cannot be loaded.*nowhere"):
        rated(EmbeddingJudge(model="org/other", tasks=tasks).open(), ORIGINALITY, asked("drink"))


def test_without_the_extra_it_says_what_to_install(tasks, monkeypatch):
    monkeypatch.setattr("personality_vector.judges.embedding.find_spec", lambda _: None)
    with pytest.raises(ModelError, match=r"pip install 'personality-vector\[creativity\]'"):
        EmbeddingJudge(model="org/known", tasks=tasks).open()


@pytest.fixture(scope="module")
def demo():
    return Subject.load(builtin("builtin:demo"))


def test_the_base_embeds_by_its_last_states_without_the_first_token(demo, tasks):
    judge = EmbeddingJudge(tasks=tasks).open().prepare(demo)
    texts = ["a cup", "I like to talk to people at a party.", "a cup of tea"]
    found = rated(judge, ORIGINALITY, asked(*texts))
    vectors = []
    for text in texts:
        ids = torch.tensor([demo.tokenizer(text)["input_ids"]])
        with torch.no_grad():
            states = demo.model(ids, output_hidden_states=True).hidden_states[-1][0]
        vectors.append(states[1:].double().mean(0))
    cosines = [torch.cosine_similarity(vectors[0], vector, dim=0).item() for vector in vectors]
    assert [score.value for score in found] == pytest.approx([1 - c for c in cosines], abs=1e-5)
    assert found[0].value == pytest.approx(0.0, abs=1e-6)


def test_an_answer_to_another_question_is_unscored(demo, tasks):
    judge = EmbeddingJudge(tasks=tasks).open().prepare(demo)
    [found] = rated(judge, ORIGINALITY, asked("drink", question="Why?"))
    assert (found.value, found.reason[:12]) == (None, "its question")


def test_its_identity_knows_the_items_and_the_model(tasks):
    given = [{}, {"tasks": tasks}, {"tasks": tasks, "name": "x"}]
    plain, mine, named = (EmbeddingJudge(**one).open().identity() for one in given)
    assert plain != mine == named


def test_the_library_itself_embeds(tasks):
    """Of a plain model it takes the mean of the last states, in the dtype of its file."""
    library = pytest.importorskip("sentence_transformers", reason="needs the extra creativity")
    folder = str(builtin("builtin:demo"))
    judge = EmbeddingJudge(model=folder, tasks=tasks).open()
    [same, other] = rated(judge, ORIGINALITY, asked("a cup", "a very small boat"))
    assert same.value == pytest.approx(0.0, abs=1e-6)
    one, two = library.SentenceTransformer(folder).encode(["a cup", "a very small boat"])
    expected = 1 - torch.cosine_similarity(torch.tensor(one), torch.tensor(two), dim=0).item()
    assert 0.01 < expected < 1.99
    assert other.value == pytest.approx(expected, abs=0.01)  # the library computes in 16 bits
