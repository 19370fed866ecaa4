"""Steering vectors from data of two sides, from a persona that a model shows, of creativity."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from personality_vector.checkpoint import Checkpoint
from personality_vector.data.chats import read_chats
from personality_vector.data.personas import COHERENCE, Persona
from personality_vector.data.rows import read_rows
from personality_vector.elicitation.filter import FilterReport, filtered, require_kept
from personality_vector.elicitation.recipe import SteerRecipe
from personality_vector.elicitation.rollouts import Rollout, Side, draw, reused
from personality_vector.errors import DataError, RecipeError
from personality_vector.judges.spec import JudgeSpec
from personality_vector.recipes.reading import read_recipe
from personality_vector.recipes.schema import Recipe, Words
from personality_vector.steering import Pooling, SteeringVector, resolve_layers
from personality_vector.subject import Chat, Judge, question, rated
from personality_vector.subject.subject import Subject
from personality_vector.traits import Pole


@dataclass(frozen=True, slots=True)
class Elicited:
    """What a model said as a persona, and what was kept of it.

    Attributes:
        persona: With the end that the recipe asked for as its positive side.
        rollouts: Every reply, kept or dropped.
        report: How many pairs each rule dropped.
        judge: Who rated.
    """

    persona: Persona
    rollouts: tuple[Rollout, ...]
    report: FilterReport
    judge: str

    def kept(self, side: Side) -> list[Chat]:
        """Return the kept chats of a side, with their system prompts; chats ``i`` are a pair."""
        return [row.chat for row in self.rollouts if row.kept and row.side == side]


def read_persona(recipe: SteerRecipe) -> Persona:
    """Return the persona that ``recipe`` names, turned to its pole.

    Raises:
        RecipeError: The recipe names none, the file is not one, or it is of another pole.
    """
    if recipe.persona is None:
        raise RecipeError("the recipe names no persona; it has positive and negative data")
    return read_recipe(recipe.persona, Persona).at(recipe.pole)


def open_judge(recipe: SteerRecipe, persona: Persona) -> Judge | None:
    """Return the judge of ``recipe``; ``None`` where none is asked.

    Before anything is generated, so that a missing key or file is not found out hours later.

    Raises:
        RecipeError: What the judge needs is missing.
        DataError: Its statements cannot be read, or it cannot rate the persona.
        ModelError: Its checkpoint cannot write digits.
    """
    if not isinstance(recipe.judge, JudgeSpec):
        return None
    judge = recipe.judge.open()
    rated(judge, persona.as_rubric(), ())
    return judge


def extract_recipe(recipe: SteerRecipe) -> SteeringVector:
    """Return the vector of a recipe with two sides of data, tied to its model by fingerprint.

    Raises:
        RecipeError: It is a recipe with a persona.
        DataError: A side cannot be read or selects nothing.
        ModelError: The model cannot be loaded, or a layer is out of range.
    """
    sides = read_sides(recipe)
    return _between(
        recipe,
        Subject.load(recipe.model, dtype=recipe.dtype, device=recipe.device),
        sides,
        recipe.pole,
    )


def extract_persona(
    recipe: SteerRecipe, *, record: Callable[[Sequence[Rollout]], object] = lambda _: None
) -> tuple[SteeringVector, Elicited]:
    """Return the vector of a recipe with a persona, tied to its model, and what it was made from.

    The chats keep their system prompts: activations are read as the model had them when it
    replied.

    Args:
        recipe: With a persona.
        record: As in :func:`elicit`.

    Raises:
        DataError: No pair of replies is left, the judge cannot rate the persona, or a layer is
            named twice.
        RecipeError: The persona, or what the judge needs, is missing or wrong.
        ModelError: A model cannot be loaded, or a layer is out of range.
    """
    persona = read_persona(recipe)
    judge = open_judge(recipe, persona)
    subject = Subject.load(recipe.model, dtype=recipe.dtype, device=recipe.device)
    if recipe.layers is not None:
        resolve_layers(subject.model, recipe.layers)  # refused now, not after hours of rollouts
    elicited = elicit(recipe, subject, judge, record=record)
    sides = elicited.kept("positive"), elicited.kept("negative")
    vector = _between(recipe, subject, sides, persona.pole, persona.label)
    return replace(vector, judge=elicited.judge), elicited


def read_sides(recipe: SteerRecipe) -> tuple[list[Chat], list[Chat]]:
    """Return the positive and the negative chats of a recipe with two sides of data.

    Data without a pole of its own is narrowed: positive rows to the recipe's pole, negative ones
    to the opposite.

    Raises:
        RecipeError: It is a recipe with a persona.
        DataError: A side cannot be read or selects nothing.
    """
    if recipe.pole is None or recipe.positive is None or recipe.negative is None:
        raise RecipeError(
            "a steer recipe with a persona has no data to read: its sides are answers of the model"
        )
    positive = recipe.positive.narrowed(recipe.pole)
    negative = recipe.negative.narrowed(recipe.pole.opposite)
    return read_chats(positive), read_chats(negative)


def elicit(
    recipe: SteerRecipe,
    subject: Subject,
    judge: Judge | None = None,
    *,
    record: Callable[[Sequence[Rollout]], object] = lambda _: None,
) -> Elicited:
    """Draw rollouts, let them be judged and keep the pairs that are clear.

    Args:
        recipe: With a persona.
        subject: Who is asked; not changed.
        judge: Who rates, as :func:`open_judge` finds. Without one, the ratings of
            ``rollouts.reuse`` count where the recipe says ``recorded``, else every pair is kept.
        record: Called with all rollouts when they are drawn, rated and filtered: whatever fails
            later, what was generated can be saved.

    Raises:
        DataError: No pair is left (it says how many each rule dropped), the judge cannot rate the
            persona, or the replies to reuse are to other questions.
        RecipeError: The persona, or what the judge needs, is missing or wrong.

    Source:
        Persona vectors, Chen et al. 2025, arXiv:2507.21509. Deviations: pairs are found by id,
        not by row; the judge sees question and reply, in our words.
    """
    persona, spec = read_persona(recipe), recipe.rollouts
    if judge is not None:
        judge = judge.prepare(subject)
        rated(judge, persona.as_rubric(), ())  # refused now, not after hours of rollouts
    is_recorded = judge is None and recipe.judge == "recorded"
    if spec.reuse is None:
        drawn = draw(subject, persona, spec, recipe.seed)
    else:
        earlier = reused(spec.reuse, persona, spec)
        drawn = earlier if is_recorded else [row.unrated() for row in earlier]
    record(drawn)
    judged = drawn if judge is None else _judged(judge, persona, drawn)
    record(judged)
    is_judged = is_recorded or judge is not None
    rollouts, report = filtered(judged, recipe.thresholds if is_judged else None)
    record(rollouts)
    require_kept(report, persona.label)
    by = str(recipe.judge) if judge is None else judge.name
    return Elicited(persona, tuple(rollouts), report, by)


def _judged(judge: Judge, persona: Persona, rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Return the rollouts with their ratings, from 0 to 100 whatever the judge's scale is."""
    answers = [row.answer for row in rollouts]
    traits, coherences = (
        rated(judge, rubric, answers) for rubric in (persona.as_rubric(), COHERENCE)
    )
    return [
        row.rated(trait, coherence, judge.scale)
        for row, trait, coherence in zip(rollouts, traits, coherences, strict=True)
    ]


def _between(
    recipe: SteerRecipe,
    subject: Subject,
    sides: tuple[list[Chat], list[Chat]],
    pole: Pole | None,
    label: str = "",
) -> SteeringVector:
    vector = SteeringVector.extract(
        subject.model,
        subject.tokenizer,
        *sides,
        layers=recipe.layers,
        pooling=recipe.pooling,
        estimator=recipe.estimator,
        batch_size=recipe.batch_size,
        pole=pole,
        label=label,
    )
    return replace(vector, model=Checkpoint.open(recipe.model).fingerprint.digest)


class CreativityPair(Recipe):
    """A prompt that asks for something creative, and its uncreative counterpart."""

    creative: Words
    uncreative: Words


def read_creativity_pairs(file: Path) -> list[CreativityPair]:
    """Return the pairs of a JSONL file: rows ``{creative, uncreative}``, in file order.

    Raises:
        DataError: The file cannot be read, holds no pair, or a line is none (named by number).
    """
    pairs = list(read_rows(file, CreativityPair).values())
    if not pairs:
        raise DataError(f"{file}: holds no pair of a creative and an uncreative prompt")
    return pairs


def creativity_direction(
    model: nn.Module,
    tokenizer: Any,
    pairs: Sequence[CreativityPair],
    *,
    layers: Sequence[int] | None = None,
    pooling: Pooling = "prompt_last",
    batch_size: int = 16,
) -> SteeringVector:
    """Return the direction of creativity: of unit length, so a coefficient is in activation units.

    Each prompt is read as the message of a user; no reply is generated.

    Raises:
        DataError: There are no pairs, the two sides are equal, or the pooling needs a response.
        NonFiniteError: The model's activations are NaN or infinite.
        ModelError: The model has no such layer.

    Source:
        Olson et al. 2024, arXiv:2412.06060: ``a = unit(mean h_l(creative) - mean h_l(uncreative))``
        with ``h_l`` the output of layer 8 of Llama-3-8B, over 500 story prompts and versions of
        them that were made uncreative; ``h_8 + 3 a``. Not verified: over which tokens they pool
        and how they count layers, for which there is no public code. The last token of the prompt
        is our choice, because what is generated next depends on it; ``prompt_mean`` is the other.
    """
    sides = (
        [question(pair.creative) for pair in pairs],
        [question(pair.uncreative) for pair in pairs],
    )
    vector = SteeringVector.extract(
        model, tokenizer, *sides, layers=layers, pooling=pooling, batch_size=batch_size
    )
    return replace(vector.unit(), label="creativity")
