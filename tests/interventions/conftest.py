"""What the tests of interventions share: a delta from a dict, a pico model, two sides."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from personality_vector.checkpoint import Checkpoint
from personality_vector.delta import Delta
from personality_vector.delta.sources import TensorSource
from personality_vector.interventions.neurons.chosen import NeuronSet
from personality_vector.interventions.neurons.find import find_neurons
from personality_vector.interventions.spec import AnyIntervention
from personality_vector.interventions.weights import WeightEdit
from personality_vector.numeric.random import generator_for
from personality_vector.recipes.schema import Recipe
from personality_vector.steering import SteeringVector
from personality_vector.subject.chat import Chat, answered, question
from personality_vector.subject.models import load_model, load_tokenizer
from personality_vector.subject.protocols import Intervention
from personality_vector.subject.subject import Subject
from personality_vector.traits import Pole

HIGH = Pole("extraversion", "high")


@dataclass
class Tensors(TensorSource):
    """A delta's tensors from a dict."""

    tensors: dict[str, Tensor]

    @property
    def _shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}

    @property
    def _origins(self) -> tuple[Any, ...]:
        return ()

    def part(self, name: str, part: slice) -> Tensor:
        return self.tensors[name].reshape(-1)[part].double()


@pytest.fixture
def edit_of(pico):
    """Return ``edit_of(family, tensors)``: an edit of some tensors of a pico model."""

    def make(family: str, tensors: dict[str, Tensor]) -> WeightEdit:
        base = Checkpoint.open(pico(family))
        return WeightEdit(Delta(Tensors(tensors), base.fingerprint, "0", "mine"))

    return make


@pytest.fixture
def llama(pico) -> Subject:
    return Subject.load(str(pico("llama")), device="cpu")


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
        return find_neurons(model, tokenizer, *sides, at_least=12, threshold=0.4, pole=HIGH)

    return find


@pytest.fixture(scope="module")
def base(pico) -> Checkpoint:
    return Checkpoint.open(pico("llama"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, base, neurons_of) -> Path:
    """Return a folder with vectors, neurons and statements of pico llama."""
    folder, digest = tmp_path_factory.mktemp("inputs"), base.fingerprint.digest
    drawn = {i: torch.randn(48, generator=generator_for(i, "vector")) for i in range(3)}
    vector = SteeringVector(drawn, digest, HIGH, "v", "response_mean", (1, 1))
    vector.save(folder / "vector")
    vector.at(1).save(folder / "one")
    replace(vector, model="0" * 32).save(folder / "strange")
    narrow = {layer: direction[:32] for layer, direction in drawn.items()}
    replace(vector, model="", directions=narrow).save(folder / "narrow")
    replace(neurons_of("llama"), model=digest).save(folder / "neurons")
    replace(neurons_of("llama"), model="0" * 32).save(folder / "strangers")
    rows = [
        {"trait": "extraversion", "level": level, "statement": f"{text} {part}", "part": part}
        for part in ("train", "held_out")
        for level, texts in (("high", SAID[True]), ("low", SAID[False][:2]))
        for text in texts
    ]
    (folder / "statements.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


class _Holder(Recipe):
    one: AnyIntervention


@pytest.fixture
def opened(folder, base) -> Callable[..., Intervention]:
    """Return ``opened(**keys)``: the intervention of these keys, as a recipe has them."""

    def make(**keys: Any) -> Intervention:
        data = {"one": {"label": "x", **keys}}
        found = _Holder.parse(data, origin="test", folder=folder).one.open(base)
        found.check(base)
        return found

    return make
