"""Opening whatever holds a delta: a saved delta, a fine-tuned checkpoint or a LoRA adapter."""

from dataclasses import replace
from pathlib import Path

from personality_vector.checkpoint import Checkpoint
from personality_vector.delta.delta import Delta
from personality_vector.delta.lora import is_adapter
from personality_vector.delta.provenance import (
    require_related,
    require_trained_on,
    trained_pole,
)
from personality_vector.delta.storage import is_saved_delta
from personality_vector.errors import BaseMismatchError, TensorMismatchError


def open_delta(where: str | Path | Delta, base: Checkpoint, *, label: str = "") -> Delta:
    """Return the delta in ``where`` and check that it belongs to ``base``.

    Raises:
        CheckpointError: Nothing usable is there.
        BaseMismatchError: It is a delta of another model, even one of the same shapes.
        TensorMismatchError: Names or shapes do not fit ``base``.
    """
    delta = where if isinstance(where, Delta) else _open(where, base)
    if delta.base != base.fingerprint:
        raise BaseMismatchError(
            f"{where if not isinstance(where, Delta) else delta.label}: is a delta of base "
            f"{delta.base}, but {base.path} is {base.fingerprint}; use the base "
            "it was taken from, or name that one with of"
        )
    for name in delta.names:
        entry = base.entries.get(name)
        if entry is None or entry.shape != delta.shape(name):
            found = "no such tensor" if entry is None else list(entry.shape)
            raise TensorMismatchError(
                f"{delta.label}: {name} has shape {list(delta.shape(name))}, "
                f"the base {base.path} has {found}"
            )
    return replace(delta, label=label) if label else delta


def _open(where: str | Path, base: Checkpoint) -> Delta:
    path = Path(where)
    if is_saved_delta(path):
        return Delta.load(path)
    if is_adapter(path):
        return Delta.from_lora(path, base, pole=trained_pole(path))
    tuned = Checkpoint.open(where)
    require_trained_on(tuned.path, base)
    delta = Delta.between(base, tuned, pole=trained_pole(tuned.path))
    require_related(tuned, base)
    return delta
