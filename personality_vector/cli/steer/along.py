"""What verbs share that read a model along a steering vector at one layer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import personality_vector as pv
from personality_vector.errors import RecipeError

Vector = Annotated[Path, typer.Argument(metavar="VECTOR", help="A saved steering vector.")]
OneLayer = Annotated[
    int | None,
    typer.Option(
        "--layer", help="0-based decoder block, -1 for the last; needed if VECTOR has several."
    ),
]

PoleOption = Annotated[
    str | None,
    typer.Option(
        "--pole",
        metavar="TRAIT:LEVEL",
        help="The pole that the vector points to, if it does not say.",
    ),
]


def chosen(vector: "pv.SteeringVector", layer: int | None) -> int:
    """Return ``--layer``, or without it the only layer of a vector.

    Raises:
        RecipeError: The vector has several.
    """
    if layer is None and len(vector.layers) > 1:
        raise RecipeError(
            f"{vector.label} has directions for layers {list(vector.layers)}; "
            "choose one with --layer"
        )
    return vector.layers[0] if layer is None else layer


def pole_of(vector: "pv.SteeringVector", pole: str | None) -> "pv.Pole | None":
    """Return the pole that a vector points to, by itself or by ``--pole``.

    Raises:
        RecipeError: The two are different.
        TraitError: ``--pole`` is not a pole.
    """
    given = None if pole is None else pv.Pole.parse(pole)
    if given and vector.pole not in (None, given):
        raise RecipeError(f"--pole {pole}: {vector.label} points to {vector.pole}; leave it out")
    return vector.pole or given


def fitting(
    vector: "pv.SteeringVector",
    layers: Sequence[int],
    checkpoint: "pv.Checkpoint",
    made_from: str,
    *remedy: str,
) -> tuple[int, ...]:
    """Check that a vector fits a model before that is loaded, and return 0-based layers.

    A layer stays negative where config.json does not say how many blocks there are.
    """
    from personality_vector.steering import block_numbers, require_made_from, require_width

    require_made_from(vector.label, made_from, checkpoint, *remedy)
    require_width(vector.label, vector.hidden, checkpoint)
    found = block_numbers(layers, checkpoint) or tuple(layers)
    for layer in found:
        if layer >= 0:
            vector.norm(layer)  # refuses a layer that the vector has no direction for
    return found
