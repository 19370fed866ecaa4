"""Whether a model can be a fine-tune of a base, by its manifest and by its weights."""

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch

from personality_vector.checkpoint import (
    Checkpoint,
    TensorEntry,
    counterparts,
    is_buffer,
    kind,
    read_manifest,
    untied,
)
from personality_vector.delta.sources import Difference, require_finite
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


def require_not_swapped(difference: Difference) -> None:
    """Check that the base is not a fine-tune of the other model, as far as its manifest knows.

    Raises:
        BaseMismatchError: The two are swapped.
    """
    base, tuned = difference.base, difference.tuned
    trained_on = _recorded_base(base.path)
    if trained_on is not None and trained_on == tuned.digest_like(trained_on):
        raise BaseMismatchError(
            f"{base.path}: was trained on {tuned.path}; the base comes first, then the fine-tune"
        )


def require_related(difference: Difference) -> None:
    """Check on a few matrices that one model can be a fine-tune of the other at all.

    Raises:
        BaseMismatchError: The models are farther apart than the base is from zero.
    """
    base, tuned = difference.base, difference.tuned
    matrices = [name for name in difference.names if len(difference.shape(name)) == 2]
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


def matched(
    base: Checkpoint, tuned: Checkpoint, excluded: Callable[[str], bool] = lambda _: False
) -> Checkpoint:
    """Return the fine-tuned model by the names of the base, once the two fit each other.

    Some trainers store a head that is tied to the embeddings, others leave it out: the counterpart
    of a head that is a copy is the embeddings, and a copy that only the fine-tuned model has is
    ignored. So are masks and tables that transformers computes, of which old files have more.

    Args:
        base: The base.
        tuned: Its fine-tune.
        excluded: Whether a tensor need not fit, since its delta is left out: asked for its name.

    Raises:
        TensorMismatchError: They do not agree in names, shapes or integer tensors; the message
            names the tensors and the model.
    """
    found = counterparts(base, tuned)
    for name in set(base.entries) - set(found):
        for embeddings in copied_from(base, name):
            if embeddings in found:
                found[name] = found[embeddings]
    missing = {name for name in base.entries.keys() - found if not is_buffer(base.entries[name])}
    extra = {
        name
        for name in tuned.entries.keys() - set(found.values())
        if not (is_buffer(tuned.entries[name]) or copied_from(tuned, name))
    }
    missing, extra = ({name for name in names if not excluded(name)} for names in (missing, extra))
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
        if name in found and not excluded(name):
            _require_same_tensor(base.entries[name], tuned.entries[found[name]], base, tuned)
    return tuned.renamed(
        {
            name: other
            for name, other in found.items()
            if base.entries[name].shape == tuned.entries[other].shape
        }
    )


def untied_beside(model: Checkpoint, other: Checkpoint) -> Checkpoint:
    """Return a model, with a head of its own if it ties its head and ``other`` does not."""
    if any(kind(name) == "head" for name in model.names):
        return model
    heads = [name for name in other.names if kind(name) == "head"]
    return untied(model, [name for name in heads if not copied_from(other, name)])


def copied_from(model: Checkpoint, name: str) -> list[str]:
    """Return the embeddings that a tensor equals, entry by entry, if it is a head."""
    head = model.entries[name]
    if kind(name) != "head":
        return []
    parts = list(pieces(math.prod(head.shape)))
    return [
        entry.name
        for entry in model.entries.values()
        if kind(entry.name) == "embeddings"
        and (entry.dtype, entry.shape) == (head.dtype, head.shape)
        and all(torch.equal(model.part(name, part), model.part(entry.name, part)) for part in parts)
    ]


def _require_same_tensor(
    ours: TensorEntry, theirs: TensorEntry, base: Checkpoint, tuned: Checkpoint
) -> None:
    if ours.shape != theirs.shape:
        by_vocabulary = kind(ours.name) in ("embeddings", "head")
        rows = by_vocabulary and ours.shape[1:] == theirs.shape[1:]
        remedy = (
            "; it has another vocabulary: write embeddings: match to carry rows by token, or "
            "exclude embeddings and head"
        )
        raise TensorMismatchError(
            f"{tuned.path}: {theirs.name} has shape {list(theirs.shape)}, "
            f"in the base {base.path} it is {list(ours.shape)}{remedy if rows else ''}"
        )
    if ours.dtype.is_floating_point != theirs.dtype.is_floating_point:
        raise TensorMismatchError(
            f"{tuned.path}: {theirs.name} is {theirs.dtype}, not {ours.dtype}"
        )
    if not ours.dtype.is_floating_point and not torch.equal(base[ours.name], tuned[theirs.name]):
        raise TensorMismatchError(
            f"{tuned.path}: the integer tensor {theirs.name} differs from the base"
        )


def _recorded_base(path: Path) -> str | None:
    """Return the digest of the base that a model was fine-tuned from by this tool."""
    match read_manifest(path):
        case {"kind": "train", "base": {"fingerprint": str(digest)}}:
            return digest
    return None
