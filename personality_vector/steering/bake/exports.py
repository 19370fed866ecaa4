"""What each route writes, and the steering by hooks that it should be equal to."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from personality_vector.steering.apply import steered
from personality_vector.steering.bake import ablation, biases
from personality_vector.steering.bake.adapter import write_adapter
from personality_vector.steering.bake.base import Base, Shifts
from personality_vector.steering.bake.proof import Reference
from personality_vector.steering.bake.weights import Edits, size_of, write_weights


@dataclass(frozen=True, slots=True)
class Export:
    """What one route writes.

    Attributes:
        write: Writes it into an empty directory.
        reference: What it should be equal to.
        dtype: Of the base's weights.
        size: Bytes that it will take, as far as known.
    """

    write: Callable[[Path], None]
    reference: Reference
    dtype: torch.dtype
    size: int = 0


def bias_export(base: Base, shifts: Shifts) -> Export:
    """Write the base with a bias that its config supports."""
    edits = biases.bias_edits(base, shifts, biases.biased_modules(base))
    return _with_biases(base, shifts, edits, biases.biased_config(base))


def convert_export(base: Base, shifts: Shifts) -> Export:
    """Write the equivalent Llama, with a bias."""
    edits = biases.bias_edits(base, shifts, biases.llama_modules(base))
    return _with_biases(base, shifts, edits, biases.llama_config(base))


def _with_biases(base: Base, shifts: Shifts, edits: Edits, config: Mapping[str, Any]) -> Export:
    realised = biases.realised_shifts(base, shifts, edits)
    reference = Reference(
        asked=lambda model: steered(model, shifts), realised=lambda model: steered(model, realised)
    )
    write = partial(_write_checkpoint, base, edits, config)
    return Export(write, reference, base.dtype, size_of(base.checkpoint, edits))


def adapter_export(base: Base, shifts: Shifts) -> Export:
    """Write a PEFT adapter; its float32 numbers are not rounded."""
    reference = Reference(
        lambda model: steered(model, shifts), lambda model: steered(model, shifts)
    )
    return Export(partial(write_adapter, base, shifts), reference, base.dtype)


def ablation_export(base: Base, direction: Tensor) -> Export:
    """Write the base with no writer along ``direction``."""
    edits = ablation.ablation_edits(base, direction)
    config = ablation.ablated_config(base)
    write = partial(_write_checkpoint, base, edits, config)
    size = size_of(base.checkpoint, edits)
    return Export(write, _reference(base, direction, edits), base.dtype, size)


def _reference(base: Base, direction: Tensor, edits: Edits) -> Reference:
    def asked(model: Any) -> Any:
        return ablation.ablated_everywhere(model, base, direction)

    def rounded(model: Any) -> Any:
        names = [name for name, _ in ablation.writers(base)]
        return ablation.with_weights(model, base, {name: edits[name].values() for name in names})

    def unrounded(model: Any) -> Any:
        return ablation.with_weights(model, base, ablation.exact_values(base, direction))

    if base.dtype == torch.float32:
        return Reference(asked, asked)
    return Reference(asked, rounded, unrounded)


EXPORTS: Mapping[str, Callable[[Base, Shifts], Export]] = {
    "bias": bias_export,
    "convert": convert_export,
    "adapter": adapter_export,
}
"""The routes of a vector and its coefficient."""


def _write_checkpoint(base: Base, edits: Edits, config: Mapping[str, Any], directory: Path) -> None:
    write_weights(base.checkpoint, edits, directory)
    text = json.dumps(config, indent=2) + "\n"
    (directory / "config.json").write_text(text, encoding="utf-8")
    base.checkpoint.copy_side_files(directory)
