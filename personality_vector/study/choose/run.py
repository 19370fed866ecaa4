"""Carrying out a choose recipe: rank the layers, scan the best of them, choose one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from personality_vector.checkpoint import Checkpoint
from personality_vector.data.personas import rubric_of
from personality_vector.data.statements import Statement, normalised, read_statements
from personality_vector.errors import DataError, RecipeError
from personality_vector.files import content_of
from personality_vector.interventions.activations import ActivationSteering
from personality_vector.judges.classifier import StatementJudge
from personality_vector.measures.coherence import Coherence, CoherenceSpec
from personality_vector.measures.divergence import Divergence
from personality_vector.measures.interview import Interview
from personality_vector.measures.likelihood import Likelihood
from personality_vector.measures.spec import Asking
from personality_vector.numeric.random import key_for
from personality_vector.steering import (
    Positions,
    SteeringVector,
    require_made_from,
    require_width,
    resolve_layers,
)
from personality_vector.study.choose.layers import Evidence, examine, ranked
from personality_vector.study.choose.scan import Choice, Scan, arm_of
from personality_vector.study.design import Arm
from personality_vector.study.recipe import ChooseRecipe
from personality_vector.study.study import Study
from personality_vector.subject import answered, question
from personality_vector.subject.models import decoder_blocks
from personality_vector.subject.subject import Subject
from personality_vector.traits import Level, Pole

_LEVELS: tuple[Level, ...] = ("high", "low")


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """What a choice is made from, opened and checked.

    Attributes:
        pole: What the vector should lead to.
        deciding: Statements of both poles, which rank the layers and measure the trait.
        halves: All statements of the part: the half that decides, and the one that the judge
            learns from.
        asking: What the model is asked, and how replies are drawn.
    """

    base: Checkpoint
    vector: SteeringVector
    pole: Pole
    deciding: Sequence[Statement]
    halves: tuple[Sequence[Statement], Sequence[Statement]]
    asking: Asking

    @classmethod
    def open(cls, recipe: ChooseRecipe) -> "Inputs":
        """Open and check everything but the weights.

        Raises:
            BaseMismatchError: The vector is of another model.
            RecipeError: Neither the recipe nor the vector names a pole.
            DataError: A pole has too few statements.
            TensorMismatchError: The vector has no direction for a layer.
        """
        base, vector = Checkpoint.open(recipe.model), SteeringVector.load(recipe.vector)
        require_made_from(recipe.vector, vector.model, base)
        require_width(recipe.vector, vector.hidden, base)
        pole = recipe.pole or vector.pole
        if pole is None:
            raise RecipeError(
                f"{recipe.vector}: has no pole; give one, such as pole: extraversion:high"
            )
        halves = _halves(recipe)
        deciding = [
            statement
            for level in _LEVELS
            for statement in _of(halves[0], Pole(pole.trait, level), recipe)
        ]
        return cls(base, vector, pole, deciding, halves, _asking(recipe))

    def made_from(self, recipe: ChooseRecipe) -> dict[str, Any]:
        """Return the recipe, the digests of its inputs, and how many statements decided."""
        counts = {level: sum(s.level == level for s in self.deciding) for level in _LEVELS}
        files = {
            "vector": recipe.vector,
            "statements": recipe.statements,
            "instrument": recipe.instrument,
        }
        contents = {name: content_of(file) for name, file in files.items() if file}
        return {
            "recipe": recipe.model_dump(mode="json"),
            "contents": {"model": self.base.fingerprint.digest, **contents},
            "seed": recipe.seed,
            "statements": {
                "part": recipe.part,
                "deciding": counts,
                "teaching": len(self.halves[1]),
            },
        }


def choose(recipe: ChooseRecipe, folder: Path) -> Choice:
    """Return the layer and the coefficients at which the vector steers best.

    Layers are ranked in one pass; the best few are scanned by generation, outwards to the floor
    of coherence; the one whose usable range moves the trait furthest is chosen. The same inputs
    give the same choice.

    Args:
        recipe: What to choose.
        folder: Keeps what is measured, so that an interrupted choice resumes, and one with another
            floor or other shares measures only what is missing.

    Raises:
        PersonalityVectorError: An input is missing, unreadable or of another model.
        ModelError: The model cannot be loaded, or does not have a layer.
        DataError: No layer is a candidate, or none has a usable strength.
    """
    inputs = Inputs.open(recipe)
    found = _examined(recipe, inputs)
    scan = Scan(inputs.pole, ranked(found)[: recipe.verify], recipe.shares, recipe.floor)
    run = _study(recipe, inputs, scan).run(folder)
    return Choice(
        inputs.pole,
        inputs.vector.label,
        recipe.floor,
        found,
        [evidence.layer for evidence in scan.layers],
        scan.points(run),
        recipe.part,
        inputs.made_from(recipe),
    )


def _examined(recipe: ChooseRecipe, inputs: Inputs) -> list[Evidence]:
    subject = Subject.load(
        inputs.base, dtype=recipe.dtype, device=recipe.device, template=recipe.template
    )
    # What is added to the last block's output acts on one token's logits alone.
    every = range(max(1, len(decoder_blocks(subject.model)) - 1))
    layers = resolve_layers(subject.model, every if recipe.layers is None else recipe.layers)
    towards, away = (
        [answered(question(recipe.question), s.text) for s in inputs.deciding if s.pole == pole]
        for pole in (inputs.pole, inputs.pole.opposite)
    )
    positions = Positions.parse(recipe.positions, lambda: subject.tokenizer)
    return examine(subject, inputs.vector, layers, towards, away, positions, recipe.batch_size)


def _study(recipe: ChooseRecipe, inputs: Inputs, scan: Scan) -> Study:
    """Return the study that verifies the best layers, each of which is an arm."""
    asking, deciding, teaching = inputs.asking, *inputs.halves
    rubric, judge = rubric_of(inputs.pole.trait), StatementJudge(tuple(teaching), tuple(deciding))
    arms = [
        Arm(
            ActivationSteering(
                inputs.vector, (found.layer,), arm_of(found.layer), recipe.positions
            ),
            scan.strengths(found),
        )
        for found in scan.layers
    ]
    return Study(
        inputs.base,
        arms,
        (
            Likelihood(inputs.deciding, recipe.question),
            Interview(asking, (rubric,), (judge,)),
            Divergence(asking, seed=recipe.seed),
            Coherence(asking, seed=recipe.seed),
        ),
        (recipe.seed,),
        recipe.dtype,
        recipe.device,
        scan,
        recipe.model_dump(mode="json"),
        recipe.template,
    )


def _asking(recipe: ChooseRecipe) -> Asking:
    """Return what is asked; every reply is judged for the trait, whatever its item is about."""
    asking = CoherenceSpec(
        instrument=recipe.instrument, question=recipe.question, generation=recipe.generation
    ).asking()
    items = tuple(item.model_copy(update={"trait": None}) for item in asking.instrument.items)
    return replace(asking, instrument=asking.instrument.model_copy(update={"items": items}))


def _halves(recipe: ChooseRecipe) -> tuple[list[Statement], list[Statement]]:
    """Return the statements of the part in two halves, by a hash of their text.

    Each is in the order of the hash: a file's own may go from the clearest statement to the least
    clear, and its beginning would then say little of the rest.
    """
    found = read_statements(recipe.statements, part=recipe.part, held_out=recipe.held_out)
    keyed = sorted(
        ((key_for(0, f"half {normalised(s.text)}"), s) for s in found), key=lambda pair: pair[0]
    )
    return [s for key, s in keyed if key % 2 == 0], [s for key, s in keyed if key % 2 == 1]


def _of(statements: Sequence[Statement], pole: Pole, recipe: ChooseRecipe) -> list[Statement]:
    found = [statement for statement in statements if statement.pole == pole][: recipe.limit]
    if len(found) < 2:
        raise DataError(
            f"{recipe.statements}: half of its {recipe.part} part has {len(found)} statements of "
            f"{pole}; a choice needs at least two of each pole"
        )
    return found
