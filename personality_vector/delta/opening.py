"""Opening whatever holds a delta: a saved delta, a fine-tuned checkpoint or a LoRA adapter."""

from dataclasses import replace
from pathlib import Path

from personality_vector.checkpoint import Checkpoint
from personality_vector.checkpoint.reader import read_json
from personality_vector.delta.delta import Delta
from personality_vector.delta.lora import is_adapter
from personality_vector.delta.storage import is_saved_delta
from personality_vector.errors import BaseMismatchError
from personality_vector.manifest import MANIFEST


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
            f"{delta.base}, but {base.path} is {base.fingerprint}; use the base it was taken from"
        )
    return replace(delta, label=label) if label else delta


def _open(where: str | Path, base: Checkpoint) -> Delta:
    path = Path(where)
    if is_saved_delta(path):
        return Delta.load(path)
    if is_adapter(path):
        return Delta.from_lora(path, base, pole=trained_pole(path))
    return Delta.between(base, where, pole=trained_pole(path))


def trained_pole(path: Path) -> str | None:
    """Return the pole that our own manifest says a model was fine-tuned on."""
    if not (path / MANIFEST).is_file():
        return None
    manifest = read_json(path / MANIFEST)
    return manifest.get("pole") if manifest.get("kind") == "train" else None
