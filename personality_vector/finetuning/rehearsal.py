"""What a training would do: what it learns from, its size, and the time of one measured step."""

import math
import statistics
from typing import Any

import torch

from personality_vector.checkpoint import Checkpoint
from personality_vector.errors import PersonalityVectorError
from personality_vector.finetuning import processes
from personality_vector.finetuning.arguments import adapter_of
from personality_vector.finetuning.guidance import Guidance
from personality_vector.finetuning.memory import memory_of, require_room
from personality_vector.finetuning.recipe import TrainRecipe
from personality_vector.finetuning.rows import Row, require_distinct, rows_of, shown
from personality_vector.finetuning.sft import time_step
from personality_vector.subject.models import chosen_for, load_tokenizer, resolve_device

_SHOWN = 3
_NODE = 8
"""GPUs of the usual machine, for FSDP where nothing says how many processes there will be."""


def rehearse(recipe: TrainRecipe) -> dict[str, Any]:
    """Return what a training would learn from, how long, and in how much memory.

    ``memory`` is that of one process, in bytes (:func:`memory_of`). ``tokens``, ``memory`` and
    ``shown`` are of the first pole, in which ``«`` and ``»`` enclose what is learned; ``steps`` are
    the updates of all poles. No weights are loaded.

    Raises:
        DataError: The data cannot be read, or the chat template cannot show them.
        RecipeError: PEFT refuses an option of the adapter.
        TrainingError: ``sft.max_length`` leaves nothing to learn, or more than the model reads.
    """
    adapter_of(recipe)
    base = Checkpoint.open(recipe.base)
    tokenizer = load_tokenizer(base.path, recipe.template)
    poles = [recipe] if recipe.poles is None else [recipe.of(pole) for pole in recipe.chosen]
    rows = [rows_of(one, tokenizer) for one in poles]
    if recipe.poles is not None:
        digests = {pole: each.digest() for pole, each in zip(recipe.chosen, rows, strict=True)}
        require_distinct(digests, recipe.data.source)
    counts = {str(one.pole): each.counts() for one, each in zip(poles, rows, strict=True)}
    found, spread = rows[0].rows, _processes(recipe)
    tokens = _lengths(found)
    on_cpu = resolve_device(recipe.device) == "cpu"
    longest = int(tokens["longest"])
    memory = memory_of(base, recipe.sft, longest, processes=spread, on_cpu=on_cpu)
    return {
        **(counts if recipe.poles is not None else rows[0].counts()),
        "tokens": tokens,
        "steps": sum(steps_of(recipe, len(each.rows), spread) for each in rows),
        "memory": memory.as_dict(),
        "shown": [shown(tokenizer, row) for row in found[:_SHOWN]],
        **chosen_for(base.path, recipe.template),
    }


def estimated_time(
    recipe: TrainRecipe, plan: dict[str, Any], guidance: Guidance | None = None
) -> dict[str, Any]:
    """Return ``seconds`` of a training without loading and saving, from a measured step.

    Two steps of the first pole are trained as in a training and thrown away; the second is
    measured, and multiplied by the steps of all poles, divided by ``workers``. Where the model
    cannot be loaded or trained here, ``seconds`` is ``None`` and ``reason`` says why.

    Args:
        recipe: The recipe.
        plan: What :func:`rehearse` found.
        guidance: What acts during the training.
    """
    first = recipe if recipe.poles is None else recipe.of(recipe.chosen[0])
    device = resolve_device(recipe.device)
    try:
        processes.require_several_for(fsdp=recipe.sft.fsdp)
        processes.join(device)
        peak, what = plan["memory"]["peak"], "a step is not measured, because it"
        processes.agreed(lambda: require_room(peak, device, what))
        step = time_step(first, guidance)
    except PersonalityVectorError as error:
        return {"seconds": None, "reason": str(error)}
    seconds = step * plan["steps"] / min(recipe.workers, len(recipe.chosen or (1,)))
    return {"seconds": float(f"{seconds:.3g}"), "seconds_per_step": float(f"{step:.3g}")}


def _processes(recipe: TrainRecipe) -> int:
    """Return how many processes train: those of torchrun, or a guess where FSDP needs several."""
    if processes.count() > 1 or not recipe.sft.fsdp:
        return processes.count()
    return torch.cuda.device_count() if torch.cuda.device_count() > 1 else _NODE


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


def steps_of(recipe: TrainRecipe, examples: int, processes: int) -> int:
    """Return the number of updates of a training without packing."""
    sft = recipe.sft
    batches = math.ceil(math.ceil(examples / sft.batch_size) / processes)
    per_epoch = math.ceil(batches / sft.gradient_accumulation)
    return sft.max_steps or math.ceil(sft.epochs * per_epoch)
