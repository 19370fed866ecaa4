"""The terms of a merge as they are asked for, and how they are opened and checked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from personality_vector.checkpoint import Checkpoint
from personality_vector.checkpoint.names import canonical
from personality_vector.delta import Delta, open_delta
from personality_vector.delta.sources import Restricted
from personality_vector.delta.transfer import Transfer, transferred
from personality_vector.errors import CheckpointError, NonFiniteError, RecipeError
from personality_vector.merging.depth import Alpha, alpha_by_tensor, chosen, selected
from personality_vector.merging.terms import BATCH, Term, runs


@dataclass(frozen=True, slots=True)
class Summand:
    """A term as it is asked for.

    Attributes:
        where: A delta, or where a saved delta, fine-tuned checkpoint or LoRA adapter lies.
        alpha: A number, numbers over depth, or numbers by pattern.
        of: The base that the delta was taken from, where it is not the base of the merge.
        label: In messages and reports; by default that of the delta.
    """

    where: Delta | str | Path
    alpha: Alpha
    of: str | Path | Checkpoint | None = None
    label: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "alpha", _finite_alpha(self.alpha, self.where))


def open_terms(
    base: Checkpoint,
    summands: Sequence[Summand],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> tuple[Term, ...]:
    """Return terms as they are asked for, opened, and checked to belong to a base.

    Raises:
        PersonalityVectorError: There is none, or one is refused.
    """
    if not summands:
        raise RecipeError("a merge needs at least one term")
    bases = [None if one.of is None else Checkpoint.open(one.of) for one in summands]
    choice = Choice.among([base, *filter(None, bases)], include, exclude)
    return tuple(
        _opened(summand, of, position, base, choice)
        for position, (summand, of) in enumerate(zip(summands, bases, strict=True))
    )


@dataclass(frozen=True)
class Choice:
    """Which tensors are to be changed.

    Attributes:
        names: Of all tensors that a word or pattern may mean: those of the base, and of the other
            bases that terms were taken from, as on disk and canonical.
        include: Words or patterns; all tensors if there are none.
        exclude: Words or patterns.
    """

    names: Sequence[str]
    include: Sequence[str]
    exclude: Sequence[str]

    @classmethod
    def among(
        cls, models: Sequence[Checkpoint], include: Sequence[str], exclude: Sequence[str]
    ) -> "Choice":
        """Return the choice among the tensors of some models."""
        names = {name for model in models for name in model.names}
        return cls(sorted(names | set(map(canonical, names))), include, exclude)

    @cached_property
    def kept(self) -> set[str]:
        """Names that terms may change.

        Raises:
            RecipeError: A pattern matches no tensor, or nothing is left.
        """
        return selected(self.names, self.include, self.exclude)

    @cached_property
    def left_out(self) -> set[str]:
        """Names that are excluded."""
        return set[str]().union(*(chosen(self.names, pattern) for pattern in self.exclude))


def _opened(
    summand: Summand, of: Checkpoint | None, position: int, base: Checkpoint, choice: Choice
) -> Term:
    """Return a term whose delta was taken from ``of``, or else from the base of the merge."""
    transfer: Transfer | None = None
    inputs: tuple[Path, ...] = ()
    delta = open_delta(summand.where, of or base, label=summand.label)
    if of is not None:
        inputs = (of.path,)
        delta, transfer = transferred(delta, of, base, choice.left_out.__contains__)
    kept = tuple(name for name in delta.names if name in choice.kept)
    if not kept:
        raise RecipeError(f"{delta.label}: include and exclude leave none of its tensors")
    if len(kept) < len(delta.names):
        delta = replace(delta, source=Restricted(delta.source, {name: name for name in kept}))
    require_nonzero(delta)
    if isinstance(summand.where, str | Path):
        inputs = (*inputs, Path(summand.where).expanduser())
    elif summand.where.directory is not None:
        inputs = (*inputs, summand.where.directory)
    at = alpha_by_tensor(summand.alpha, kept, base.names)
    return Term(delta, summand.alpha, at, position, transfer, inputs)


def require_nonzero(delta: Delta) -> None:
    """Refuse a delta that changes nothing; reads until the first entry that is not zero.

    Raises:
        CheckpointError: Every entry is zero.
    """
    for name in delta.names:
        for part in runs(delta.shape(name), BATCH):
            if bool(delta.source.part(name, part).any()):
                return
    raise CheckpointError(
        f"{delta.label}: is zero in every tensor: the fine-tuned model and the base are the same"
    )


def _finite_alpha(alpha: Any, where: Any) -> Alpha:
    """Return alpha as floats.

    Raises:
        NonFiniteError: A number is NaN or infinite.
        RecipeError: It is no number, or there is none.
    """
    if isinstance(alpha, Mapping | list | tuple) and not alpha:
        raise RecipeError(f"{where}: alpha is empty; give at least one number")
    if isinstance(alpha, Mapping):
        return {str(key): cast("float", _finite_alpha(each, where)) for key, each in alpha.items()}
    if isinstance(alpha, list | tuple):
        return tuple(cast("float", _finite_alpha(each, where)) for each in alpha)
    if isinstance(alpha, str | bool) or not hasattr(alpha, "__float__"):
        raise RecipeError(f"{where}: alpha must be a number, got {alpha!r}")
    value = float(alpha)
    if not math.isfinite(value):
        raise NonFiniteError(f"{where}: alpha must be a finite number, got {value}")
    return value
