"""Steering vectors from two sides of data, from a persona, and of creativity."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from personality_vector.checkpoint import Checkpoint, revision_of
from personality_vector.data.chats import Selection, select_chats
from personality_vector.data.creativity import CreativityPair
from personality_vector.elicitation.elicit import (
    Elicited,
    elicit,
    load_subject,
    open_judge,
    read_persona,
)
from personality_vector.elicitation.recipe import SteerRecipe
from personality_vector.elicitation.rollouts import Rollout
from personality_vector.errors import RecipeError
from personality_vector.steering import Pooling, SteeringVector, resolve_layers
from personality_vector.subject import Chat, question
from personality_vector.subject.subject import Subject
from personality_vector.traits import Pole


def extract_recipe(recipe: SteerRecipe) -> SteeringVector:
    """Return the vector of a recipe with two sides of data, tied to its model by fingerprint.

    Raises:
        RecipeError: The recipe has a persona.
        DataError: A side cannot be read or selects nothing.
        ModelError: The model cannot be loaded, or a layer is out of range.
    """
    sides = read_sides(recipe)
    chats = sides[0].chats, sides[1].chats
    return _between(recipe, load_subject(recipe), chats, recipe.pole, dropped=dropped_of(sides))


def extract_persona(
    recipe: SteerRecipe, *, record: Callable[[Sequence[Rollout]], object] = lambda _: None
) -> tuple[SteeringVector, Elicited]:
    """Return the vector of a recipe with a persona, tied to its model, and what it was made from.

    The chats keep their system prompts, so activations are read as they were when the model
    replied.

    Args:
        recipe: A recipe with a persona.
        record: As in :func:`elicit`.

    Raises:
        DataError: No pair of replies is left, the judge cannot rate the persona, or a layer is
            named twice.
        RecipeError: The persona, or what the judge needs, is missing or wrong.
        ModelError: A model cannot be loaded, or a layer is out of range.
    """
    persona = read_persona(recipe)
    judge = open_judge(recipe, persona)
    subject = load_subject(recipe)
    if recipe.layers is not None:
        resolve_layers(
            subject.model, recipe.layers
        )  # refused now rather than after hours of rollouts
    elicited = elicit(recipe, subject, judge, record=record)
    positive, negative = elicited.kept("positive"), elicited.kept("negative")
    vector = _between(
        *(recipe, subject, (positive, negative), persona.pole, persona.label),
        dropped=+Counter(elicited.report.dropped),
    )
    return replace(vector, judge=elicited.judge), elicited


def read_sides(recipe: SteerRecipe) -> tuple[Selection, Selection]:
    """Return the positive and the negative chats of a recipe with two sides of data.

    Data without a pole of its own is narrowed: positive rows to the recipe's pole, negative ones
    to the opposite.

    Raises:
        RecipeError: The recipe has a persona.
        DataError: A side cannot be read or selects nothing.
    """
    if recipe.pole is None or recipe.positive is None or recipe.negative is None:
        raise RecipeError(
            "a steer recipe with a persona has no data to read; "
            "give positive and negative instead of persona"
        )
    positive = select_chats(recipe.positive.narrowed(recipe.pole))
    return positive, select_chats(recipe.negative.narrowed(recipe.pole.opposite))


def dropped_of(sides: Sequence[Selection]) -> Counter[str]:
    """Return how many rows of both sides were dropped, by reason."""
    return sum((Counter(side.dropped) for side in sides), Counter[str]())


def _between(
    recipe: SteerRecipe,
    subject: Subject,
    sides: tuple[list[Chat], list[Chat]],
    pole: Pole | None,
    label: str = "",
    *,
    dropped: Mapping[str, int],
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
    return replace(vector, **origin(recipe, vector.made_with, dropped))


def origin(
    recipe: SteerRecipe, made_with: Mapping[str, Any], dropped: Mapping[str, int]
) -> dict[str, Any]:
    """Return what ties a vector or neurons to the model of the recipe, and what was dropped."""
    checkpoint = Checkpoint.open(recipe.model)
    counts = {"dropped": dict(dropped)} if dropped else {}
    return {
        "model": checkpoint.fingerprint.digest,
        "made_with": {**made_with, **counts, **revision_of(checkpoint.path)},
    }


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
        ModelError: The model does not have this layer.

    Source:
        Olson et al. 2024, arXiv:2412.06060: ``a = unit(mean h_l(creative) - mean h_l(uncreative))``
        with ``h_l`` the output of layer 8 of Llama-3-8B, over 500 story prompts and versions of
        them that were made uncreative; ``h_8 + 3 a``. Not verified: over which tokens they pool
        and how they count layers, for which there is no public code. The last token of the prompt
        is our choice, because what is generated next depends on it; ``prompt_mean`` is the other.
    """
    return replace(
        SteeringVector.extract(
            model,
            tokenizer,
            [question(pair.creative) for pair in pairs],
            [question(pair.uncreative) for pair in pairs],
            layers=layers,
            pooling=pooling,
            batch_size=batch_size,
        ).unit(),
        label="creativity",
    )
