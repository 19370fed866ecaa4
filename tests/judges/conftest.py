"""What the judges of these tests are asked."""

import pytest

from personality_vector.subject.protocols import Answer, Rubric
from personality_vector.traits import Pole


def answers_of(*replies):
    return [Answer("who", 0, "Who are you?", reply) for reply in replies]


@pytest.fixture
def answers():
    """Return ``answers(*replies)``: what was said to one question."""
    return answers_of


@pytest.fixture
def high():
    """The high end of extraversion, described from both ends."""
    return Rubric(
        "extraversion", "Talks gladly.", "Stays silent.", pole=Pole("extraversion", "high")
    )


@pytest.fixture
def role():
    """Something without an opposite."""
    return Rubric("gardener", "Speaks of plants.")
