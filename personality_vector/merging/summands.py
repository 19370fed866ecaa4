"""The terms of a merge as they are asked for: which tensors, which alpha, opened and checked."""

import fnmatch
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

from personality_vector.checkpoint import Checkpoint
from personality_vector.checkpoint.names import Kind, canonical, kind
from personality_vector.delta import Delta, open_delta
from personality_vector.delta.sources import Restricted
from personality_vector.delta.transfer import transferred
from personality_vector.errors import CheckpointError, NonFiniteError, RecipeError
from personality_vector.merging.terms import CHUNK, Alpha, Term, runs

_LAYER = re.compile(r"^(.*?\b(?:layers|layer|h|blocks|block))\.(\d+)\.")

WORDS: tuple[str, ...] = get_args(Kind)
"""Words for tensors whose names differ between families: embeddings, head, norms, vision."""


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
    names = {name for model in (base, *filter(None, bases)) for name in model.names}
    names |= set(map(canonical, names))
    kept = selected(sorted(names), include, exclude)
    left_out = set[str]().union(*(chosen(names, pattern) for pattern in exclude))
    terms = []
    for position, (summand, of) in enumerate(zip(summands, bases, strict=True)):
        delta, remarks = _moved(summand, of, base, left_out)
        delta = _restricted(delta, kept)
        require_nonzero(delta)
        alpha_at = alpha_by_tensor(summand.alpha, delta.names, base.names)
        where = summand.where
        read = where.directory if isinstance(where, Delta) else Path(where).expanduser()
        inputs = tuple(filter(None, (of.path if of else None, read)))
        terms.append(Term(delta, summand.alpha, alpha_at, position, remarks, inputs))
    return tuple(terms)


def _moved(
    summand: Summand, of: Checkpoint | None, base: Checkpoint, left_out: set[str]
) -> tuple[Delta, Mapping[str, Any]]:
    """Return the delta of a summand, as one of ``base``, and how it was moved there."""
    delta = open_delta(summand.where, of or base, label=summand.label)
    if of is None:
        return delta, {}
    delta, transfer = transferred(delta, of, base, left_out.__contains__)
    return delta, {"transfer": transfer.describe()}


def _restricted(delta: Delta, names: set[str]) -> Delta:
    kept = tuple(name for name in delta.names if name in names)
    if not kept:
        raise RecipeError(f"{delta.label}: include and exclude leave none of its tensors")
    if kept == delta.names:
        return delta
    return replace(delta, source=Restricted(delta.source, {name: name for name in kept}))


def require_nonzero(delta: Delta) -> None:
    """Refuse a delta that changes nothing; reads until the first entry that is not zero.

    Raises:
        CheckpointError: Every entry is zero.
    """
    for name in delta.names:
        for part in runs(delta.shape(name), CHUNK):
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


def chosen(names: Iterable[str], pattern: str) -> set[str]:
    """Return the names that a pattern means: a word of :data:`WORDS`, or a glob over the name.

    >>> sorted(chosen(["model.norm.weight", "lm_head.weight"], "norms"))
    ['model.norm.weight']

    Raises:
        RecipeError: It means none of them.
    """
    if pattern in WORDS:
        found = {name for name in names if kind(name) == pattern}
    else:
        found = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
    if not found:
        raise RecipeError(
            f"{pattern!r} matches no tensor; write {', '.join(WORDS)}, or a pattern over the "
            "whole name such as '*.mlp.*'"
        )
    return found


def selected(names: Sequence[str], include: Sequence[str], exclude: Sequence[str]) -> set[str]:
    """Return the names that ``include`` means (all, if empty) and ``exclude`` does not.

    Raises:
        RecipeError: A pattern matches nothing, or nothing is left.
    """
    kept = set(names) if not include else set().union(*(chosen(names, p) for p in include))
    for pattern in exclude:
        kept -= chosen(names, pattern)
    if not kept:
        raise RecipeError("include and exclude leave no tensor to merge")
    return kept


def layer_of(name: str) -> tuple[str, int] | None:
    """Return the stack and the number of the layer that a tensor lies in.

    >>> layer_of("model.layers.3.mlp.up_proj.weight")
    ('model.layers', 3)
    """
    match = _LAYER.match(name)
    return (match[1], int(match[2])) if match else None


def depths_of(names: Iterable[str]) -> dict[str, int]:
    """Return the number of layers of each stack."""
    places = sorted(place for place in map(layer_of, names) if place)
    return {stack: layer + 1 for stack, layer in places}  # the last one wins


def alpha_by_tensor(
    alpha: Alpha, names: Sequence[str], all_names: Sequence[str] | None = None
) -> Callable[[str], float]:
    """Return alpha as a function of the tensor's name.

    Numbers over depth are spread evenly from the first layer of the model to the last and
    interpolated; what comes before the layers (embeddings) has the first number, what comes after
    (final norm, head) the last. Of numbers by pattern the first that matches counts; a tensor that
    none matches has 0.

    Args:
        alpha: Of a term.
        names: Of the tensors that the term has.
        all_names: Of those that the model has, which say how deep it is; by default ``names``.

    Raises:
        RecipeError: A pattern matches none of ``names``, or there are no layers.
    """
    if isinstance(alpha, Mapping):
        table: dict[str, float] = {}
        for pattern, value in alpha.items():
            for name in chosen(names, pattern):
                table.setdefault(name, float(value))
        return lambda name: table.get(name, 0.0)
    if isinstance(alpha, tuple):
        return _over_depth(alpha, all_names or names)
    value = float(alpha)
    return lambda name: value  # noqa: ARG005


def _over_depth(alpha: tuple[float, ...], names: Sequence[str]) -> Callable[[str], float]:
    depths = depths_of(names)
    if not depths:
        raise RecipeError("alpha is given over depth, but no tensor lies in a numbered layer")

    def at(name: str) -> float:
        place = layer_of(name)
        if place is None:
            return alpha[0] if kind(name) == "embeddings" else alpha[-1]
        stack, layer = place
        position = layer / max(1, depths[stack] - 1) * (len(alpha) - 1)
        below = min(int(position), len(alpha) - 1)
        above = min(below + 1, len(alpha) - 1)
        return alpha[below] + (position - below) * (alpha[above] - alpha[below])

    return at
