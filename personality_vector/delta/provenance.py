"""Whether a model can be a fine-tune of a base, by its manifest and by its weights."""

import math
import statistics
from pathlib import Path

import torch

from personality_vector.checkpoint import Checkpoint, kind, read_manifest
from personality_vector.delta.sources import require_finite
from personality_vector.errors import BaseMismatchError, TensorMismatchError, some
from personality_vector.numeric.parallel import pieces

_MOST_RATIO = 1.2
"""Largest ratio of the norms of delta and base: a fine-tune has 0.001 to 0.3, two unrelated
models 1.4."""

_SAMPLED = 8
_READ = slice(0, 1 << 16)


def trained_pole(path: Path) -> str | None:
    """Return the pole that a model was fine-tuned on by this tool."""
    match read_manifest(path):
        case {"kind": "train", "pole": str(pole)}:
            return pole
    return None


def require_trained_on(path: Path, base: Checkpoint) -> None:
    """Check that a model was trained on this base, if its manifest says what it was trained on.

    A model that was trained by an earlier version is not refused for that, since training it again
    takes hours: see :meth:`Checkpoint.require_recorded`.

    Raises:
        BaseMismatchError: It was trained on another base.
    """
    trained_on = _recorded_base(path)
    if trained_on is not None:
        base.require_recorded(trained_on, path, "trained on base")


def require_not_swapped(base: Checkpoint, tuned: Checkpoint) -> None:
    """Check that ``base`` is not a fine-tune of ``tuned``, as far as its manifest knows.

    Raises:
        BaseMismatchError: The two are swapped.
    """
    trained_on = _recorded_base(base.path)
    if trained_on is not None and trained_on == tuned.digest_like(trained_on):
        raise BaseMismatchError(
            f"{base.path}: was trained on {tuned.path}; the base comes first, then the fine-tune"
        )


def require_related(base: Checkpoint, tuned: Checkpoint) -> None:
    """Check on a few matrices that ``tuned`` can be a fine-tune of ``base`` at all.

    Raises:
        BaseMismatchError: The models are farther apart than the base is from zero.
    """
    matrices = [name for name in base.names if len(base.entries[name].shape) == 2]
    chosen = matrices[:: max(1, len(matrices) // _SAMPLED)]
    starts = [require_finite(base, name, _READ).float() for name in chosen]
    ends = [require_finite(tuned, name, _READ).float() for name in chosen]
    ratios = [
        float((end - start).norm()) / float(start.norm()) if start.any() else 0.0
        for start, end in zip(starts, ends, strict=True)
    ]
    if ratios and statistics.median(ratios) > _MOST_RATIO:
        raise BaseMismatchError(
            f"{tuned.path}: is not a fine-tune of {base.path}: the norm of their difference is "
            f"{statistics.median(ratios):.1f} times that of the base; if it is one all the same, "
            "save the delta with `pvec diff` and merge that"
        )


def require_same_tensors(base: Checkpoint, tuned: Checkpoint) -> None:
    """Check that two checkpoints have the same names and shapes, and equal integer tensors.

    A head that only the fine-tuned model has is ignored if it is a copy of the embeddings, which
    some trainers store.

    Raises:
        TensorMismatchError: They do not agree; the message names the tensors and the model.
    """
    missing = set(base.entries) - set(tuned.entries)
    extra = {name for name in set(tuned.entries) - set(base.entries) if not _is_copy(tuned, name)}
    if missing or extra:
        both = (("lacks", missing), ("adds", extra))
        parts = [f"{verb} {some(names)}" for verb, names in both if names]
        heads = [name for name in missing | extra if kind(name) == "head"]
        tied = " (one of the two ties its head to its embeddings)" if heads else ""
        raise TensorMismatchError(
            f"{tuned.path}: {' and '.join(parts)}{tied}; a fine-tune of {base.path} has the same "
            "tensors, and a delta of another base has to name that one with of"
        )
    for name in base.names:
        _require_same_tensor(base, tuned, name)


def _is_copy(model: Checkpoint, name: str) -> bool:
    """Return whether a tensor is a head that equals the embeddings, entry by entry."""
    head = model.entries[name]
    if kind(name) != "head":
        return False
    alike = [
        entry.name
        for entry in model.entries.values()
        if kind(entry.name) == "embeddings"
        and (entry.dtype, entry.shape) == (head.dtype, head.shape)
    ]
    parts = list(pieces(math.prod(head.shape)))
    return any(
        all(torch.equal(model.part(name, part), model.part(other, part)) for part in parts)
        for other in alike
    )


def _require_same_tensor(base: Checkpoint, tuned: Checkpoint, name: str) -> None:
    ours, theirs = base.entries[name], tuned.entries[name]
    if ours.shape != theirs.shape:
        raise TensorMismatchError(
            f"{tuned.path}: {name} has shape {list(theirs.shape)}, "
            f"in the base {base.path} it is {list(ours.shape)}"
        )
    if ours.dtype.is_floating_point != theirs.dtype.is_floating_point:
        raise TensorMismatchError(f"{tuned.path}: {name} is {theirs.dtype}, not {ours.dtype}")
    if not ours.dtype.is_floating_point and not torch.equal(base[name], tuned[name]):
        raise TensorMismatchError(f"{tuned.path}: the integer tensor {name} differs from the base")


def _recorded_base(path: Path) -> str | None:
    """Return the digest of the base that a model was fine-tuned from by this tool."""
    match read_manifest(path):
        case {"kind": "train", "base": {"fingerprint": str(digest)}}:
            return digest
    return None
