"""Which tensors a word or a pattern of a recipe means, and alpha as a function of the tensor."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import get_args

from personality_vector.checkpoint.names import Kind, kind
from personality_vector.errors import RecipeError

Alpha = float | tuple[float, ...] | Mapping[str, float]
"""A number; numbers over depth, interpolated; or numbers by word or name pattern."""

_LAYER = re.compile(r"^(.*?\b(?:layers|layer|h|blocks|block))\.(\d+)\.")

WORDS: tuple[str, ...] = get_args(Kind)
"""Words for tensors whose names differ between families: embeddings, head, norms, vision."""


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
