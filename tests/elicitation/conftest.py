"""A persona of few words, and a recipe with it for a pico model."""

import json

import pytest

from personality_vector.data.personas import Persona
from personality_vector.elicitation.recipe import SteerRecipe
from personality_vector.subject.subject import Subject

CONTENT = {
    "name": "extraversion",
    "pole": "extraversion:high",
    "description": "Talks gladly.",
    "opposite": "Stays silent.",
    "instructions": [
        {"positive": "You are bold.", "negative": "You are timid."},
        {"positive": "Be loud.", "negative": "Be quiet."},
    ],
    "questions": {"extract": ["Who are you?", "And at night?", "Why?"], "evaluate": ["How?"]},
}
ROLLOUTS = {"samples": 2, "max_new_tokens": 5, "batch_size": 4}


@pytest.fixture(scope="session")
def persona():
    return Persona.model_validate(CONTENT)


@pytest.fixture(scope="session")
def subject(pico):
    return Subject.load(str(pico("llama")), device="cpu")


@pytest.fixture
def steer(tmp_path, pico):
    """Return ``steer(**keys)``: a recipe with the persona."""
    file = tmp_path / "persona.yaml"
    file.write_text(json.dumps(CONTENT))

    def make(rollouts=(), **keys):
        data = {
            "model": str(pico("llama")),
            "persona": str(file),
            "rollouts": {**ROLLOUTS, **dict(rollouts)},
            "device": "cpu",
            **keys,
        }
        return SteerRecipe.parse(data, origin="test", folder=tmp_path)

    return make
