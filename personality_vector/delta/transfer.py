"""Moving a delta onto another model: one of the same shapes, or the language part of a VLM.

Chat vectors, Huang et al. 2023, arXiv:2310.04799, add a delta of one model to a relative of it:
``theta_target + alpha * (theta_tuned - theta_of)``. Only names change on the way, no number.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from personality_vector.checkpoint import Checkpoint
from personality_vector.checkpoint.names import beginning, canonical
from personality_vector.delta.delta import Delta, digest
from personality_vector.delta.places import Move
from personality_vector.delta.sources import Renamed
from personality_vector.errors import BaseMismatchError, RecipeError


@dataclass(frozen=True, slots=True)
class Transfer:
    """What a moved delta changes in its target, and what it does not.

    Attributes:
        matched: Tensors of the target that it is added to.
        excluded: Tensors of the delta that were left out, as the delta calls them.
        left_alone: All other tensors of the target: with ``matched``, every one of them.
    """

    matched: tuple[str, ...]
    excluded: tuple[str, ...]
    left_alone: tuple[str, ...]

    def describe(self) -> dict[str, Any]:
        """Return counts as JSON-like data, with names grouped by what they begin with."""
        return {
            "matched": len(self.matched),
            "of": len(self.matched) + len(self.left_alone),
            "excluded": _grouped(self.excluded),
            "left_alone": _grouped(self.left_alone),
        }

    def __str__(self) -> str:
        found = self.describe()
        text = f"{found['matched']} of {found['of']} tensors matched"
        for what in ("excluded", "left alone"):
            groups = found[what.replace(" ", "_")].items()
            shown = ", ".join(f"{group} ({count})" for group, count in groups)
            text += f"; {what}: {shown}" if shown else ""
        return text


def transferred(
    delta: Delta, of: Checkpoint, target: Checkpoint, excluded: Callable[[str], bool]
) -> tuple[Delta, Transfer]:
    """Return ``delta`` as a delta of ``target``, and what it changes there.

    Two models with the same tensor names match name by name, others by canonical name. Every
    tensor of the delta finds its place or is excluded. The identity stays, unless something is
    excluded: it says which numbers these are, not where they are added, so that a random mask does
    not change with the target (where that has the same names).

    A model without a head of its own reads its output off the embeddings, so their delta is also
    that of its head. Between such a model and one with a head it means two things, and the user has
    to say that the head is left out: a tied target then gets the delta of the embeddings in both
    places, an untied one only in the embeddings.

    Args:
        delta: Taken from ``of``.
        of: The base that it was taken from.
        target: The model that it will be added to.
        excluded: Whether to leave out a tensor. Asked for its name in ``of`` and for its canonical
            name (of a head that only the target has: in the target), and either is enough.

    Raises:
        BaseMismatchError: ``delta`` was taken from another model than ``of``.
        TensorMismatchError: A tensor has no place, or one of another shape; or the two models
            differ in sizes, in vocabulary or in whether they have a head.
        RecipeError: Nothing is left of the delta.
    """
    if delta.base != of.fingerprint:
        raise BaseMismatchError(
            f"{delta.label}: is a delta of base {delta.base}, but {of.path} is {of.fingerprint}; "
            "name the model that it was taken from"
        )
    left_out = tuple(name for name in delta.names if excluded(name) or excluded(canonical(name)))
    kept = sorted(set(delta.names) - set(left_out))
    if not kept:
        raise RecipeError(f"{delta.label}: has {len(left_out)} tensors and all are excluded")
    own = Move(delta, of, target).places(kept, excluded)
    moved = replace(
        delta,
        source=Renamed(delta.source, own),
        base=target.fingerprint,
        identity=_without(delta.identity, left_out),
        directory=None,
    )
    rest = tuple(name for name in target.names if name not in own)
    return moved, Transfer(moved.names, left_out, rest)


def _grouped(names: Iterable[str]) -> dict[str, int]:
    """Return how many names begin alike: ``{"model.visual.*": 129, "lm_head.weight": 1}``."""
    found = {name: beginning(name) for name in names}
    counts = Counter(found.values())
    return {
        name if counts[group] == 1 else f"{group}.*": counts[group] for name, group in found.items()
    }


def _without(identity: str, excluded: Iterable[str]) -> str:
    """Return the identity of a delta that lacks these tensors: its own if it lacks none."""
    names = tuple(excluded)
    return digest("without", identity, *names) if names else identity
