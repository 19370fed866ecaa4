"""Opening whatever holds a delta: a saved delta, a fine-tuned checkpoint or a LoRA adapter."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from personality_vector.checkpoint import Checkpoint, locate, untied
from personality_vector.delta.delta import Delta
from personality_vector.delta.lora import is_adapter
from personality_vector.delta.provenance import require_related, require_trained_on, trained_pole
from personality_vector.delta.sources import Difference
from personality_vector.delta.storage import is_saved_delta
from personality_vector.delta.vocabulary import Embeddings, fitted
from personality_vector.errors import BaseMismatchError, TensorMismatchError


@dataclass(frozen=True, slots=True)
class Allowed:
    """Says what of a fine-tune need not fit the base that it is opened on.

    Attributes:
        excluded: Whether a tensor, by its name, will be left out anyway.
        stated: Whether an adapter goes on the base even if its config names another model.
        embeddings: What becomes of embeddings and head of another vocabulary.
    """

    excluded: Callable[[str], bool] = lambda _: False
    stated: bool = False
    embeddings: Embeddings = "strict"


STRICT = Allowed()


def open_delta(
    where: str | Path | Delta,
    base: Checkpoint,
    *,
    label: str = "",
    allowed: Allowed = STRICT,
) -> Delta:
    """Return the delta in ``where`` and check that it belongs to ``base``.

    ``allowed`` says what of a fine-tune need not fit.

    Raises:
        CheckpointError: Nothing usable is there.
        BaseMismatchError: It is a delta of another model, even one of the same shapes.
        TensorMismatchError: Names or shapes do not fit ``base``.
    """
    if isinstance(where, Delta):
        delta = where
    elif is_saved_delta(Path(where)):
        delta = Delta.load(where)
    else:
        delta = open_fine_tune(where, base, require_related, allowed=allowed)
    if delta.base != base.fingerprint:
        raise BaseMismatchError(
            f"{where if not isinstance(where, Delta) else delta.label}: is a delta of base "
            f"{delta.base}, but {base.path} is {base.fingerprint}; use the base "
            "it was taken from, or name that one with of"
        )
    entries = untied(base, delta.names).entries
    for name in delta.names:
        entry = entries.get(name)
        if entry is None or entry.shape != delta.shape(name):
            found = "no such tensor" if entry is None else list(entry.shape)
            raise TensorMismatchError(
                f"{delta.label}: {name} has shape {list(delta.shape(name))}, "
                f"the base {base.path} has {found}"
            )
    return replace(delta, label=label) if label else delta


def open_fine_tune(
    where: str | Path,
    base: Checkpoint,
    require: Callable[[Difference], None],
    *,
    pole: str | None = None,
    allowed: Allowed = STRICT,
) -> Delta:
    """Return the delta of a fine-tuned checkpoint or a LoRA adapter.

    Args:
        where: Its directory or Hub id.
        base: The model that it was fine-tuned from, as far as its manifest knows.
        require: A check of base and checkpoint.
        pole: What it expresses; by default what it was trained on.
        allowed: What of it need not fit.

    Raises:
        PersonalityVectorError: It cannot be read, or it is of another base.
    """
    path = locate(where)
    if is_adapter(path):
        label = "" if Path(where).is_dir() else Path(where).name
        pole = pole or trained_pole(path)
        return Delta.from_lora(path, base, pole=pole, label=label, stated=allowed.stated)
    tuned = Checkpoint.open(path if Path(where).is_dir() else where)
    require_trained_on(tuned.path, base)
    tuned, is_skipped = fitted(base, tuned, allowed.embeddings)
    delta = Delta.between(
        base,
        tuned,
        pole=pole or trained_pole(tuned.path),
        excluded=lambda name: allowed.excluded(name) or is_skipped(name),
    )
    if isinstance(delta.source, Difference):
        require(delta.source)
    return delta
