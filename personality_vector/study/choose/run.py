"""Carrying out a choose recipe."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from personality_vector.checkpoint import Checkpoint
from personality_vector.checkpoint.digests import content_of
from personality_vector.data.instruments import Instrument, Item, read_instrument
from personality_vector.data.statements import Statement, normalised, read_statements
from personality_vector.errors import DataError, RecipeError
from personality_vector.interventions.activations import ActivationSteering
from personality_vector.judges.classifier import StatementJudge
from personality_vector.measures.probe import LikelihoodProbe
from personality_vector.numeric.random import key_for
from personality_vector.progress import progress
from personality_vector.recipes.choice import ChooseRecipe
from personality_vector.steering import Positions, SteeringVector, resolve_layers
from personality_vector.steering.belonging import require_made_from, require_width
from personality_vector.study.choose.choice import Choice
from personality_vector.study.choose.layers import Evidence, Reading, examine, ranked
from personality_vector.study.choose.strength import Gauges, Point, Yardstick, scan
from personality_vector.subject.chat import Chat, answered, question
from personality_vector.subject.models import (
    decoder_blocks,
    load_model,
    load_tokenizer,
    resolve_device,
)
from personality_vector.traits import Level, Pole

_LEVELS: tuple[Level, ...] = ("high", "low")


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What a choice is made from, opened and checked.

    Attributes:
        pole: What the vector should lead to.
        deciding: Statements of both poles, which rank the layers and are the probe.
        halves: All statements of the part: the half that decides, and the one that the judge
            learns from.
    """

    base: Checkpoint
    vector: SteeringVector
    pole: Pole
    deciding: Sequence[Statement]
    halves: tuple[Sequence[Statement], Sequence[Statement]]
    instrument: Instrument

    @classmethod
    def open(cls, recipe: ChooseRecipe) -> "Inputs":
        """Open and check everything but the weights.

        Raises:
            BaseMismatchError: The vector is of another model.
            RecipeError: Neither recipe nor vector name a pole.
            DataError: A pole has no statements, or too few.
            TensorMismatchError: The vector has no direction for a layer.
        """
        base, vector = Checkpoint.open(recipe.model), SteeringVector.load(recipe.vector)
        require_made_from(recipe.vector, vector.model, base)
        require_width(recipe.vector, vector.hidden, base)
        pole = recipe.pole or vector.pole
        if pole is None:
            raise RecipeError(f"{recipe.vector}: has no pole; give one: pole: trait:high")
        halves = _halves(recipe)
        deciding = [
            statement
            for level in _LEVELS
            for statement in _of(halves[0], Pole(pole.trait, level), recipe)
        ]
        return cls(base, vector, pole, deciding, halves, _instrument(recipe))

    def contents(self, recipe: ChooseRecipe) -> dict[str, str]:
        """Return digests of everything that the choice depends on."""
        found = {
            "model": self.base.fingerprint.digest,
            "vector": content_of(recipe.vector),
            "statements": content_of(recipe.statements),
        }
        return found | ({"instrument": content_of(recipe.instrument)} if recipe.instrument else {})

    def made_from(self, recipe: ChooseRecipe) -> dict[str, Any]:
        """Return the recipe, the digests of its inputs, and how many statements decided."""
        read: dict[str, Any] = json.loads(recipe.model_dump_json())
        levels = [statement.level for statement in self.deciding]
        counts = {level: levels.count(level) for level in _LEVELS}
        return {
            "recipe": read,
            "contents": self.contents(recipe),
            "seed": recipe.seed,
            "statements": {
                "part": recipe.part,
                "deciding": counts,
                "teaching": len(self.halves[1]),
            },
        }


def choose(recipe: ChooseRecipe, inputs: Inputs) -> Choice:
    """Return the layer and the coefficients at which the vector steers best.

    Layers are ranked in one pass; the best few are scanned by generation, outwards to the floor
    of coherence; the one whose usable range moves the probe furthest is chosen. The same inputs
    give the same choice.

    Raises:
        ModelError: The model cannot be loaded, or has no such layer.
        DataError: No layer is a candidate, or none has a usable strength.
    """
    device = resolve_device(recipe.device)
    model = load_model(inputs.base.path, dtype=recipe.dtype, device=device)
    tokenizer = load_tokenizer(inputs.base.path)
    positions = Positions.parse(recipe.positions, tokenizer)
    found = _examined(model, tokenizer, recipe, inputs, positions)
    best = ranked(found)[: recipe.verify]
    yardstick = Yardstick.prepare(model, tokenizer, _gauges(recipe, inputs))
    curves = []
    for evidence in progress(best, "verify layers"):
        steering = ActivationSteering(inputs.vector, (evidence.layer,), positions=positions)
        measure = partial(_measured, yardstick, steering, evidence.unit)
        curves += scan(measure, recipe.shares, recipe.floor)
    verified = [evidence.layer for evidence in best]
    label = inputs.vector.label
    return Choice(inputs.pole, label, recipe.floor, found, verified, curves, recipe.part)


def _measured(
    yardstick: Yardstick, steering: ActivationSteering, unit: float, share: float
) -> Point:
    return yardstick(steering, share * unit, share)


def _examined(
    model: Any, tokenizer: Any, recipe: ChooseRecipe, inputs: Inputs, positions: Positions
) -> list[Evidence]:
    # What is added to the last block's output acts on one token's logits alone.
    every = range(max(1, len(decoder_blocks(model)) - 1))
    layers = resolve_layers(model, every if recipe.layers is None else recipe.layers)
    reading = Reading(
        _chats(inputs, inputs.pole, recipe),
        _chats(inputs, inputs.pole.opposite, recipe),
        positions,
        recipe.batch_size,
    )
    return examine(model, tokenizer, inputs.vector, layers, reading)


def _chats(inputs: Inputs, pole: Pole, recipe: ChooseRecipe) -> list[Chat]:
    asked = question(recipe.question)
    return [answered(asked, s.text) for s in inputs.deciding if s.pole == pole]


def _gauges(recipe: ChooseRecipe, inputs: Inputs) -> Gauges:
    drawn = recipe.generation
    return Gauges(
        inputs.pole,
        LikelihoodProbe(inputs.deciding, recipe.question),
        StatementJudge.fit(inputs.halves[1], inputs.halves[0], recipe.seed),
        inputs.instrument,
        Generation(drawn.max_new_tokens, drawn.temperature, drawn.top_p, drawn.batch_size),
        drawn.samples,
        recipe.seed,
    )


def _halves(recipe: ChooseRecipe) -> tuple[list[Statement], list[Statement]]:
    """Return the statements of the part in two halves, by a hash of their text.

    Each is in the order of the hash: a file's own may go from the clearest statement to the least
    clear, and its beginning would then say little of the rest.
    """
    found = read_statements(recipe.statements, part=recipe.part, held_out=recipe.held_out)
    keyed = [(key_for(0, f"half {normalised(s.text)}"), s) for s in found]
    halves: tuple[list[Statement], list[Statement]] = ([], [])
    for key, statement in sorted(keyed, key=lambda pair: pair[0]):
        halves[key % 2].append(statement)
    return halves


def _of(statements: Sequence[Statement], pole: Pole, recipe: ChooseRecipe) -> list[Statement]:
    found = [statement for statement in statements if statement.pole == pole][: recipe.limit]
    if len(found) < 2:
        raise DataError(
            f"{recipe.statements}: half of its {recipe.part} part has {len(found)} statements of "
            f"{pole}; a choice needs two at least, of this pole and of the opposite one"
        )
    return found


def _instrument(recipe: ChooseRecipe) -> Instrument:
    if recipe.instrument is not None:
        return read_instrument(recipe.instrument)
    return Instrument(
        name="question", version="1", items=(Item(id="question", text=recipe.question),)
    )
