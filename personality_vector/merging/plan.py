"""The plan of a merge: what would be done, checked before any weight is written."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from personality_vector.checkpoint import FLOATS, Checkpoint, TensorPlan, revision_of, untied
from personality_vector.delta import Delta, open_delta
from personality_vector.errors import ModelError
from personality_vector.merging.loop import Rounding, require_stochastic
from personality_vector.merging.merged import Merged, merged_by
from personality_vector.merging.recipe import MergeRecipe, OutputSpec
from personality_vector.merging.terms import CHUNK, runs
from personality_vector.numeric.parallel import cores

_PROCESS_BYTES = 300_000_000
"""Memory of Python, torch and the compiled loops; the rest of what a merge takes is its chunks."""


@dataclass(frozen=True, slots=True)
class Output:
    """Says how merged tensors are written: dtype (``same`` as the base), rounding, shard size."""

    dtype: str = "same"
    rounding: Rounding = "nearest"
    shard_size: str = "5GB"

    def __post_init__(self) -> None:
        OutputSpec.parse(asdict(self), origin="output", folder=Path())


@dataclass(frozen=True)
class MergePlan:
    """A plan to write ``base + delta``: checked, and not yet begun.

    Attributes:
        base: The base.
        merged: What is added to it: the terms, and the method that combines them.
        output: How the result is written.
        device: Where it is computed.
        notes: What the author of the recipe may not expect.
        recipe: The recipe as it was read, for the manifest; empty for a merge in Python.
    """

    base: Checkpoint
    merged: Merged
    output: Output = field(default_factory=Output)
    device: str = "cpu"
    notes: tuple[str, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.merged.combine.name

    @property
    def inputs(self) -> list[Path]:
        """Every directory that is read."""
        return [self.base.path, *self.merged.inputs]

    @cached_property
    def tensors(self) -> list[TensorPlan]:
        """What will be written, in the order of the base's files."""
        dtype = FLOATS.get(self.output.dtype)  # none for "same"
        return [
            TensorPlan(e.name, dtype if dtype and e.dtype.is_floating_point else e.dtype, e.shape)
            for e in self.base.in_file_order
        ]

    @property
    def size(self) -> int:
        """Number of bytes that will be written."""
        return sum(tensor.size for tensor in self.tensors)

    def describe(self) -> dict[str, Any]:
        """Return the plan as JSON-like data: every option with its value, every term."""
        return {
            "base": described_base(self.base),
            "method": self.method,
            "source": self.merged.combine.source,
            "options": dict(self.merged.combine.options),
            "seed": self.merged.seed,
            "terms": [
                {
                    "label": term.delta.label,
                    "alpha": list(term.alpha) if isinstance(term.alpha, tuple) else term.alpha,
                    "identity": term.delta.identity,
                    "pole": str(term.delta.pole) if term.delta.pole else None,
                    "tensors": sum(term.alpha_at(name) != 0.0 for name in term.delta.names),
                    "of_tensors": len(self.base.entries),
                    **term.remarks,
                }
                for term in self.merged.terms
            ],
            "output": asdict(self.output),
            "bytes": self.size,
            **({"notes": list(self.notes)} if self.notes else {}),
            **({"recipe": dict(self.recipe)} if self.recipe else {}),
        }


def described_base(base: Checkpoint) -> dict[str, str]:
    """Return which model a merge begins with, as JSON-like data."""
    return {
        "path": str(base.path),
        "reference": base.reference,
        "fingerprint": base.fingerprint.digest,
        **revision_of(base.path),
    }


def forecast(plan: MergePlan, out: Path) -> dict[str, Any]:
    """Return what a dry run adds to the plan: norms, disk and memory; reads every term once."""
    parent = next(path for path in out.absolute().parents if path.exists())
    rows = [runs(tensor.shape, CHUNK)[:1] for tensor in plan.tensors]
    chunk = max((part.stop for parts in rows for part in parts), default=0)
    # A chunk of each term is held up to three times, the base and the sums a few times more.
    chunks = cores() * (3 * len(plan.merged.terms) + 8)
    return {
        "norms": [float(f"{term.delta.norm():.6g}") for term in plan.merged.terms],
        "free_disk": shutil.disk_usage(parent).free,
        "peak_memory": _PROCESS_BYTES + chunks * chunk * 8,  # an estimate, beyond the page cache
        "threads": cores(),
        "device": plan.device,
    }


def plan_merge(
    base: str | Path | Checkpoint,
    delta: Delta,
    *,
    output: Output | None = None,
    device: str = "auto",
) -> MergePlan:
    """Check everything that can be checked before ``base + delta`` is written.

    Args:
        base: Directory, Hub id or ``builtin:demo``.
        delta: What :func:`personality_vector.merging.merged.merged` returns, or any other delta.
        output: dtype, rounding and shard size.
        device: ``auto``, ``cpu`` or ``cuda``.

    Raises:
        PersonalityVectorError: The delta is of another base, or the output is refused.
    """
    start, output = Checkpoint.open(base), output or Output()
    delta = open_delta(delta, start)
    source = delta.source if isinstance(delta.source, Merged) else Merged.of(delta)
    if output.dtype != "same":
        _ = start.config  # which will be rewritten, so it has to be there
    plan = MergePlan(untied(start, source.names), source, output, resolve_device(device))
    for tensor in plan.tensors if output.rounding == "stochastic" else ():
        if tensor.dtype.is_floating_point:
            require_stochastic(tensor.dtype)
    return plan


def plan_recipe(recipe: MergeRecipe) -> MergePlan:
    """Return the checked plan of a recipe."""
    base = Checkpoint.open(recipe.base)
    output = Output(**dict(recipe.output))
    plan = plan_merge(base, merged_by(recipe, base), output=output, device=recipe.device)
    return replace(plan, recipe=recipe.model_dump(mode="json", exclude_defaults=True))


def resolve_device(device: str) -> str:
    """Return the device to compute on: ``auto`` is CUDA where there is such a device.

    Raises:
        ModelError: The device is not there, or has no float64.
    """
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise ModelError(
            f"device {device!r}: a merge runs on cpu, cuda or cuda:N; mps has no float64"
        )
    number = int(device.partition(":")[2] or 0)
    if device != "cpu" and number >= torch.cuda.device_count():
        raise ModelError(
            f"device {device}: torch sees {torch.cuda.device_count()} CUDA devices; use cpu or auto"
        )
    return device
