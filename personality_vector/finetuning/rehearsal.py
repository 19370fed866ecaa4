"""What a training would do: what it learns from, its size, and the time of one measured step."""

import math
import statistics
from typing import Any

from personality_vector.checkpoint import Checkpoint
from personality_vector.finetuning.recipe import TrainRecipe
from personality_vector.finetuning.rows import Row, require_distinct, rows_of, shown
from personality_vector.subject.models import chosen_for, load_tokenizer

_SHOWN = 3


def rehearse(recipe: TrainRecipe) -> dict[str, Any]:
    """Return what a training would learn from and what it would leave out and cut.

    Raises:
        DataError: The data cannot be read, or the chat template cannot show them.
        TrainingError: ``sft.max_length`` leaves nothing to learn, or more than the model reads.
    """
    base = Checkpoint.open(recipe.base)
    tokenizer = load_tokenizer(base.path, recipe.template)
    if recipe.poles is not None:
        require_distinct(recipe)
    poles = [recipe] if recipe.poles is None else [recipe.of(pole) for pole in recipe.chosen]
    rows = [rows_of(one, tokenizer) for one in poles]
    counts = {str(one.pole): each.counts() for one, each in zip(poles, rows, strict=True)}
    found = rows[0].rows
    return {
        **(counts if recipe.poles is not None else rows[0].counts()),
        "tokens": _lengths(found),
        "steps": steps_of(recipe, len(found)),
        "shown": [shown(tokenizer, row) for row in found[:_SHOWN]],
        **chosen_for(base.path, recipe.template),
    }


def _lengths(rows: list[Row]) -> dict[str, Any]:
    """Return how long rows are, in tokens, and how many of these are learned."""
    sizes = [len(row["input_ids"]) for row in rows]
    learned = [sum(label >= 0 for label in row["labels"]) for row in rows]
    return {
        "shortest": min(sizes),
        "median": statistics.median(sizes),
        "longest": max(sizes),
        "learned": sum(learned),
        "all": sum(sizes),
    }


def steps_of(recipe: TrainRecipe, examples: int) -> int:
    """Return the number of updates of a training without packing, in one process."""
    sft = recipe.sft
    per_epoch = math.ceil(math.ceil(examples / sft.batch_size) / sft.gradient_accumulation)
    return sft.max_steps or math.ceil(sft.epochs * per_epoch)
