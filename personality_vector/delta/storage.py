"""Saved deltas: a directory with ``delta.safetensors``, ``delta.json`` and a manifest."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save_file
from torch import Tensor

from personality_vector.checkpoint import AtomicDirectory, Checkpoint, ShardWriter, TensorPlan
from personality_vector.checkpoint.header import DTYPES, NAMES, read_header
from personality_vector.checkpoint.reader import read_json
from personality_vector.delta.sources import Difference, Stored, TensorSource
from personality_vector.errors import CheckpointError, RecipeError, blame, some
from personality_vector.manifest import rounded, write_manifest
from personality_vector.numeric import norm
from personality_vector.progress import progress

_RECORD = "delta.json"
_TENSORS = "delta.safetensors"
_EXACT = "exact.safetensors"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def is_saved_delta(path: Path) -> bool:
    """Return whether a directory is a saved delta."""
    return (path / _RECORD).is_file()


class _Base(BaseModel):
    """The fingerprint of the base, as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    tensors: int
    parameters: int


class DeltaRecord(BaseModel):
    """The content of ``delta.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: _Base
    identity: str
    label: str
    pole: str | None
    dtype: Literal["float32", "bfloat16"]
    tuned_dtypes: dict[str, Literal["F64", "F32", "F16", "BF16"]]
    statistics: dict[str, dict[str, float]]
    exact: bool


@dataclass(slots=True)
class _Learnt:
    """What is learnt about each tensor while it is written."""

    statistics: dict[str, dict[str, float]] = field(default_factory=dict)
    tuned_dtypes: dict[str, str] = field(default_factory=dict)
    exact: dict[str, Tensor] = field(default_factory=dict)


def save_stored(
    source: TensorSource, directory: Path, record: Mapping[str, Any], dtype: str, *, force: bool
) -> Path:
    """Write every tensor of ``source``, one at a time; see :meth:`Delta.save`."""
    if dtype not in _DTYPES:
        raise RecipeError(f"dtype {dtype!r}: a delta is stored as {' or '.join(_DTYPES)}")
    plans = [TensorPlan(name, _DTYPES[dtype], source.shape(name)) for name in source.names]
    learnt = _known(source, dtype)
    with AtomicDirectory(directory, force=force, inputs=source.inputs) as partial:
        with ShardWriter(partial, plans, 2**63, stem="delta") as writer:
            for plan in progress(plans, "diff"):
                with blame(tensor=plan.name):
                    writer.write(plan.name, _learn(source, plan, learnt))
        if learnt.exact:
            save_file(learnt.exact, partial / _EXACT)
        content = {
            **record,
            "dtype": dtype,
            "tuned_dtypes": learnt.tuned_dtypes,
            "statistics": rounded(learnt.statistics),
            "exact": bool(learnt.exact),
        }
        (partial / _RECORD).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        sources = {str(index): str(path) for index, path in enumerate(source.inputs)}
        write_manifest(partial, "delta", {**record, "dtype": dtype, "inputs": sources})
    return directory


def _known(source: TensorSource, dtype: str) -> _Learnt:
    """Return what a delta that was loaded already knows, so that saving it again keeps it exact."""
    learnt = _Learnt()
    if isinstance(source, Stored) and dtype == "float32":
        learnt.tuned_dtypes = {name: NAMES[kind] for name, kind in source.tuned_dtypes.items()}
        if source.exact is not None:
            learnt.exact = {name: source.exact[name] for name in source.exact.names}
    return learnt


def _learn(source: TensorSource, plan: TensorPlan, learnt: _Learnt) -> Tensor:
    """Return the tensor to store, and note its statistics and what float32 cannot restore."""
    delta = source.read(plan.name)
    stored = delta.to(plan.dtype)
    learnt.statistics[plan.name] = {
        "norm": norm(delta),
        "zeros": float((delta == 0).float().mean()) if delta.numel() else 1.0,
        "stored_norm": norm(stored.float()),
    }
    if isinstance(source, Difference) and plan.dtype == torch.float32:
        _note_exact(source, plan.name, delta, learnt)
    return stored


def _note_exact(source: Difference, name: str, delta: Tensor, learnt: _Learnt) -> None:
    tuned = source.tuned_checkpoint[name]
    learnt.tuned_dtypes[name] = NAMES[tuned.dtype]
    restored = (source.base[name].float() + delta).to(tuned.dtype)
    # Compared as bits, so that -0.0 and 0.0 differ.
    wrong = (_bits(restored) != _bits(tuned)).reshape(-1).nonzero()[:, 0]
    if wrong.numel():
        learnt.exact[f"{name}.index"] = wrong
        learnt.exact[f"{name}.value"] = tuned.reshape(-1)[wrong]


def _bits(tensor: Tensor) -> Tensor:
    width = {2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.dtype.itemsize]
    return tensor.contiguous().view(width)


def saved_norm(directory: Path) -> float:
    """Return the norm of a saved delta, from its record alone."""
    _, record = open_stored(directory)
    return math.sqrt(sum(row["norm"] ** 2 for row in record.statistics.values()))


def open_stored(directory: Path) -> tuple[Stored, DeltaRecord]:
    """Open a saved delta; return its source and its record.

    Raises:
        CheckpointError: A file is missing or damaged, or two files disagree.
    """
    if not is_saved_delta(directory):
        raise CheckpointError(f"{directory}: is not a saved delta: it has no {_RECORD}")
    try:
        record = DeltaRecord.model_validate(read_json(directory / _RECORD))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        wrong = f"lacks {where}" if first["type"] == "missing" else f"{where}: {first['msg']}"
        raise CheckpointError(f"{directory / _RECORD}: {wrong}") from error
    tensors = Checkpoint(directory, read_header(directory / _TENSORS))
    odd = set(tensors.entries) ^ set(record.statistics)
    if odd:
        raise CheckpointError(f"{directory}: {_TENSORS} and {_RECORD} disagree on {some(odd)}")
    exact = Checkpoint(directory, read_header(directory / _EXACT)) if record.exact else None
    tuned_dtypes = {name: DTYPES[dtype] for name, dtype in record.tuned_dtypes.items()}
    return Stored(tensors, exact, tuned_dtypes), record
