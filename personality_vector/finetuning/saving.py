"""What a fine-tune leaves on disk: finite weights under the names of the base, and its files."""

import tempfile
from pathlib import Path

import torch

from personality_vector.checkpoint import (
    Checkpoint,
    ShardWriter,
    TensorPlan,
    read_header,
)
from personality_vector.delta.provenance import matched
from personality_vector.delta.sources import require_finite
from personality_vector.errors import DivergedError, NonFiniteError


def require_finite_weights(out: Path) -> None:
    """Check the weights, which the last step can break without a loss that shows it."""
    for file in sorted(out.glob("*.safetensors")):
        weights = Checkpoint(out, read_header(file))
        for name in weights.names:
            try:
                require_finite(weights, name)
            except NonFiniteError as error:
                raise DivergedError(
                    f"{name} is not finite after training; nothing was saved; "
                    "try a lower sft.learning_rate"
                ) from error


def add_missing(out: Path, base: Checkpoint) -> None:
    """Add the base's side files, and the tensors of the base that transformers did not save.

    A tied tensor that the base stores twice is written twice; a buffer that transformers computes
    itself and does not load is copied from the base.
    """
    base.copy_side_files(out)
    saved = Checkpoint.open(out)
    absent = [name for name in base.names if name not in saved.entries]
    if absent:
        _rewrite_with(saved, base, absent)
    matched(base, Checkpoint.open(out))


def _rewrite_with(saved: Checkpoint, base: Checkpoint, absent: list[str]) -> None:
    """Rewrite a saved checkpoint so that it also has the ``absent`` tensors."""
    dtype = next(iter(saved.entries.values())).dtype
    twins = {name: _twin(base, saved, name) for name in absent}
    plans = [TensorPlan(name, entry.dtype, entry.shape) for name, entry in saved.entries.items()]
    plans += [
        TensorPlan(name, dtype if entry.dtype.is_floating_point else entry.dtype, entry.shape)
        for name, entry in ((name, base.entries[name]) for name in absent)
    ]
    with tempfile.TemporaryDirectory(dir=saved.path) as whole:
        with ShardWriter(Path(whole), plans) as writer:
            for plan in plans:
                twin = twins.get(plan.name, plan.name)
                source = base[plan.name] if twin is None else saved[twin]
                writer.write(plan.name, source.to(plan.dtype))
        for file in saved.path.glob("*.safetensors*"):
            file.unlink()
        for file in Path(whole).iterdir():
            file.rename(saved.path / file.name)


def _twin(base: Checkpoint, saved: Checkpoint, name: str) -> str | None:
    """Return the saved tensor that the base ties to ``name``: the same values under two names."""
    entry = base.entries[name]
    if not entry.dtype.is_floating_point or len(entry.shape) < 2:
        return None
    same = (other for other in saved.names if saved.entries[other].shape == entry.shape)
    return next((other for other in same if torch.equal(base[other], base[name])), None)
