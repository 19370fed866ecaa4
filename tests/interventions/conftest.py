"""What the tests of interventions share: a delta from a dict, a pico model, two sides."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
from torch import Tensor

from personality_vector.checkpoint import Checkpoint
from personality_vector.delta import Delta
from personality_vector.interventions.neurons import NeuronSet, find_neurons
from personality_vector.interventions.weights import WeightEdit
from personality_vector.subject.chat import Chat, answered, question
from personality_vector.subject.models import load_model, load_tokenizer
from personality_vector.traits import Pole


@dataclass
class Tensors:
    """A delta's tensors from a dict."""

    tensors: dict[str, Tensor]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.tensors))

    @property
    def inputs(self) -> tuple[Any, ...]:
        return ()

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.tensors[name].shape)

    def part(self, name: str, part: slice) -> Tensor:
        return self.tensors[name].reshape(-1)[part].double()

    def tuned_part(self, _name: str, _part: slice, _base: Tensor) -> None:
        return None

    def require_unchanged(self) -> None:
        pass


@pytest.fixture
def edit_of(pico):
    """Return ``edit_of(family, tensors)``: an edit of some tensors of a pico model."""

    def make(family: str, tensors: dict[str, Tensor]) -> WeightEdit:
        base = Checkpoint.open(pico(family))
        return WeightEdit(Delta(Tensors(tensors), base.fingerprint, "0", "mine"))

    return make


@pytest.fixture
def llama(pico):
    return load_model(pico("llama"))


SAID = {
    True: ("I love meeting new people", "I talk at every party, and I talk a lot"),
    False: ("I am quiet", "alone at home I read", "no party for me, I am the quiet one"),
}
"""Replies of both sides, of different lengths and numbers."""


@pytest.fixture(scope="session")
def sides() -> tuple[list[Chat], list[Chat]]:
    """Return chats that show a pole, and chats that show its opposite."""
    positive, negative = (
        [answered(question("Who are you?", system="Be brief."), text) for text in SAID[is_high]]
        for is_high in (True, False)
    )
    return positive, negative


@pytest.fixture(scope="session")
def neurons_of(pico, sides) -> Callable[[str], NeuronSet]:
    """Return ``neurons_of(family)``: those that tell the sides apart in a pico model."""

    @cache
    def find(family: str) -> NeuronSet:
        model, tokenizer = load_model(pico(family)), load_tokenizer(pico(family))
        pole = Pole("extraversion", "high")
        return find_neurons(model, tokenizer, *sides, at_least=12, threshold=0.4, pole=pole)

    return find
