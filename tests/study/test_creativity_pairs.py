"""Olson's design end to end: three groups of replies, their scores, and who is preferred."""

import json

import pytest

from personality_vector.data.creativity import SPLITS, read_creativity_pairs
from personality_vector.elicitation.extract import creativity_direction
from personality_vector.errors import DataError
from personality_vector.study.recipe import SweepRecipe, open_study
from personality_vector.study.tables import CHOICES, FLATNESS, SCORES, tables_of
from personality_vector.subject.subject import Subject
from tests.fake_endpoint import likely, serving

LAYER = 1


@pytest.fixture
def folder(tmp_path, pico):
    """Return a folder with ``pairs.jsonl`` and the direction of its train part."""
    rows = [
        {"creative": f"I love {n} clouds.", "uncreative": f"I see {n} books.", "part": part}
        for n, part in enumerate(SPLITS * 3)
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    subject = Subject.load(str(pico("llama")), device="cpu")
    pairs = read_creativity_pairs(tmp_path / "pairs.jsonl", "train")
    creativity_direction(subject.model, subject.tokenizer, pairs).save(tmp_path / "vector")
    return tmp_path


def recipe_of(folder, base, url):
    pairwise = {"pairwise": {"judge": {"endpoint": {"model": "j", "base_url": url}}}}
    return SweepRecipe.parse(
        {
            "base": str(base),
            "device": "cpu",
            "strengths": [1.0],
            "interventions": [
                {"label": "steered", "vector": "vector", "layers": [LAYER], "strengths": [3.0]},
                {"label": "twins", "twins": "pairs.jsonl"},
            ],
            "measures": [
                {
                    "interview": {
                        "traits": ["creativity"],
                        "pairs": "pairs.jsonl",
                        "generation": {"max_new_tokens": 6, "samples": 1, "temperature": 1.0},
                        "judges": [pairwise],
                    }
                },
                {"activations": {"vectors": ["vector"], "layer": LAYER}},
            ],
        },
        origin="r.yaml",
        folder=folder,
    )


def test_three_groups_are_scored_and_compared_with_the_base(folder, base):
    with serving(lambda _: likely({"A": 0.9, "B": 0.1})) as fake:
        run = open_study(recipe_of(folder, base, fake.base_url)).run(folder / "run")
        asked = [body["messages"][0]["content"] for body in fake.requests]
    tables = tables_of(run)
    scores = tables[SCORES].set_index("intervention")
    assert list(scores.index) == ["base", "steered", "twins"]
    assert (scores["items"] == 3).all()
    assert (scores["low"] <= scores["cosine"]).all()
    assert scores.loc["steered", "shift_low"] > 0, "the vector was added where it is read"
    choice = tables[CHOICES].set_index("intervention")
    # Who only looks at the place prefers nobody, and is known by the distance of the two orders.
    assert (choice["n"] == 0).all()
    assert (choice["tied"] == 3).all()
    assert choice["position_bias"].to_numpy() == pytest.approx(1.6)
    assert set(run.answers()["question"]) == {f"I love {n} clouds." for n in (2, 5, 8)}
    assert all("clouds" in text and "books." not in text for text in asked)
    assert list(tables[FLATNESS]["judge"]) == ["pairwise endpoint j"]


def test_a_measure_that_asks_something_else_is_refused_by_the_twins(folder, base):
    with serving(lambda _: likely({"A": 1.0})) as fake:
        recipe = recipe_of(folder, base, fake.base_url)
        other = recipe.measures[1].model_copy(update={"pairs": None})
        study = open_study(recipe.model_copy(update={"measures": (other,)}))
        with pytest.raises(DataError, match="has no uncreative twin; let every measure ask"):
            study.run(folder / "run")
