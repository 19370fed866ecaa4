"""Creativity by Olson et al.: the direction from uncreative to creative prompts."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from personality_vector.elicitation.rollouts import read_rows
from personality_vector.errors import DataError
from personality_vector.recipes.fields import Words
from personality_vector.recipes.reading import Recipe
from personality_vector.steering.activations import Pooling
from personality_vector.steering.vector import SteeringVector
from personality_vector.subject.chat import question


class CreativityPair(Recipe):
    """A prompt that asks for something creative, and its uncreative counterpart."""

    creative: Words
    uncreative: Words


def read_creativity_pairs(file: Path) -> list[CreativityPair]:
    """Return the pairs of a JSONL file: rows ``{creative, uncreative}``, in file order.

    Raises:
        DataError: The file cannot be read, holds no pair, or a line is none (named by number).
    """
    pairs = read_rows(file, CreativityPair)
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
