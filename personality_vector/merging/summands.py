"""The terms of a merge as they are asked for: which tensors, which alpha, opened and checked."""

import fnmatch
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np

from personality_vector.checkpoint import (
    Checkpoint,
    Kind,
    canonical,
    embeddings_of,
    kind,
    revision_of,
    untied,
)
from personality_vector.delta import Delta, Difference, Restricted, block_of, open_delta
from personality_vector.delta.opening import Allowed
from personality_vector.delta.transfer import transferred
from personality_vector.delta.vocabulary import ByToken, Embeddings, counts
from personality_vector.errors import (
    CheckpointError,
    NonFiniteError,
    RecipeError,
    TensorMismatchError,
)
from personality_vector.lab import expanded
from personality_vector.merging.terms import CHUNK, Alpha, Term, runs

WORDS: tuple[str, ...] = get_args(Kind)
"""Words for tensors whose names differ between families: embeddings, head, norms, vision."""

Where = Delta | str | Path
Base = str | Path | Checkpoint | None
Asked = tuple[Where, Alpha] | tuple[Where, Alpha, Base] | tuple[Where, Alpha, Base, str]
"""A term as it is asked for: a delta, or where a saved delta, fine-tuned checkpoint or LoRA adapter
lies; its alpha; the base that it was taken from, where that is not the base of the merge; its label
in messages and reports, by default that of the delta."""


def open_terms(
    base: Checkpoint,
    terms: Sequence[Asked],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    embeddings: Embeddings = "strict",
) -> tuple[Term, ...]:
    """Open terms and check that they belong to a base.

    Raises:
        PersonalityVectorError: There is none, or one is refused.
    """
    if not terms:
        raise RecipeError("a merge needs at least one term")
    rows = [(*asked, *(None, "")[len(asked) - 2 :]) for asked in terms]
    alphas = [_finite_alpha(alpha, where) for where, alpha, *_ in rows]
    bases = [None if of is None else Checkpoint.open(of) for _, _, of, _ in rows]
    names = {name for model in (base, *filter(None, bases)) for name in model.names}
    names |= set(map(canonical, names))
    kept = selected(sorted(names), include, exclude)

    def excluded(name: str) -> bool:
        left_out, taken = (
            any(is_meant(one, pattern) for one in (name, canonical(name)) for pattern in patterns)
            for patterns in (exclude, include or "*")
        )
        return left_out or not taken

    opened: list[Term] = []
    for (where, _, _, label), alpha, of in zip(rows, alphas, bases, strict=True):
        allowed = Allowed(excluded, stated=of is not None, embeddings=embeddings)
        delta = open_delta(where, of or base, label=label, allowed=allowed)
        source = delta.source
        remarks: dict[str, Any] = {**revision_of(source.inputs[-1])}  # the base comes first
        if isinstance(source, Difference) and isinstance(source.tuned, ByToken):
            remarks["tokens"] = counts(source.tuned.rows, source.tuned)
        if of is not None:
            delta, transfer = transferred(delta, of, base, excluded, embeddings)
            remarks["transfer"] = transfer.describe() | revision_of(of.path)
        own_head = set(untied(base, delta.names).names).difference(base.names)
        delta = _restricted(delta, kept | {name for name in own_head if not excluded(name)})
        require_nonzero(delta)
        alpha_at = alpha_by_tensor(alpha, delta.names, base.names)
        read = where.directory if isinstance(where, Delta) else expanded(where)
        inputs = tuple(filter(None, (of.path if of else None, read)))
        opened.append(Term(delta, alpha, alpha_at, len(opened), remarks, inputs))
    _require_one_way_to_tie(base, [term.delta for term in opened])
    return tuple(opened)


def _require_one_way_to_tie(base: Checkpoint, deltas: Sequence[Delta]) -> None:
    """Refuse deltas of which one unties the head of a base and another changes it while it is tied.

    Raises:
        TensorMismatchError: There are both.
    """
    names = {name for delta in deltas for name in delta.names}
    for head in set(untied(base, names).names).difference(base.names):
        by = {
            embeddings_of(base) in delta.names: delta.label for delta in deltas if head not in delta
        }
        if True in by:
            other = next(delta.label for delta in deltas if head in delta)
            raise TensorMismatchError(
                f"{by[True]}: changes the embeddings, to which {base.path} ties its head, and "
                f"{other} gives it a head of its own; exclude embeddings or head, or merge one "
                "of the two first"
            )


def _restricted(delta: Delta, names: set[str]) -> Delta:
    kept = tuple(name for name in delta.names if name in names)
    if not kept:
        raise RecipeError(f"{delta.label}: include and exclude leave none of its tensors")
    source = Restricted(delta.source, {name: name for name in kept})
    return delta if kept == delta.names else replace(delta, source=source)


def require_nonzero(delta: Delta) -> None:
    """Refuse a delta that changes nothing; reads until the first entry that is not zero.

    Raises:
        CheckpointError: Every entry is zero.
    """
    parts = ((name, part) for name in delta.names for part in runs(delta.shape(name), CHUNK))
    if not any(bool(delta.source.part(name, part).any()) for name, part in parts):
        raise CheckpointError(
            f"{delta.label}: is zero in every tensor: the fine-tuned model equals the base"
        )


def _finite_alpha(alpha: Any, where: Any) -> Alpha:
    """Return alpha as floats.

    Raises:
        NonFiniteError: A number is NaN or infinite.
        RecipeError: It is not a number, or there is none.
    """
    if isinstance(alpha, Mapping | list | tuple) and not alpha:
        raise RecipeError(f"{where}: alpha is empty; give at least one number")
    if isinstance(alpha, Mapping):
        return {str(key): cast("float", _finite_alpha(each, where)) for key, each in alpha.items()}
    if isinstance(alpha, list | tuple):
        return tuple(cast("float", _finite_alpha(each, where)) for each in alpha)
    if isinstance(alpha, str | bool) or not hasattr(alpha, "__float__"):
        raise RecipeError(f"{where}: alpha must be a number, got {alpha!r}")
    if not math.isfinite(alpha):
        raise NonFiniteError(f"{where}: alpha must be a finite number, got {float(alpha)}")
    return float(alpha)


def is_meant(name: str, pattern: str) -> bool:
    """Return whether a pattern means a tensor: see :func:`chosen`."""
    return kind(name) == pattern if pattern in WORDS else fnmatch.fnmatchcase(name, pattern)


def chosen(names: Iterable[str], pattern: str) -> set[str]:
    """Return the names that a pattern means: a word of :data:`WORDS`, or a glob over the name.

    >>> sorted(chosen(["model.norm.weight", "lm_head.weight"], "norms"))
    ['model.norm.weight']

    Raises:
        RecipeError: It means none of them.
    """
    found = {name for name in names if is_meant(name, pattern)}
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
    kept = kept.difference(*(chosen(names, pattern) for pattern in exclude))
    if not kept:
        raise RecipeError("include and exclude leave no tensor to merge")
    return kept


def depths_of(names: Iterable[str]) -> dict[str, int]:
    """Return the number of layers of each stack."""
    blocks = sorted(block[:2] for block in map(block_of, names) if block)
    return {stack: layer + 1 for stack, layer in blocks}  # the last one wins


def alpha_by_tensor(
    alpha: Alpha, names: Sequence[str], all_names: Sequence[str] | None = None
) -> Callable[[str], float]:
    """Return alpha as a function of the tensor's name.

    Numbers over depth are spread evenly from the first layer of the model to the last and
    interpolated; what comes before the layers (embeddings) has the first number, what comes after
    (final norm, head) the last. Of numbers by pattern the first that matches counts; a tensor that
    none matches has 0.

    Args:
        alpha: The alpha of a term.
        names: The tensors that the term has.
        all_names: Those that the model has, which say how deep it is; by default ``names``.

    Raises:
        RecipeError: A pattern matches none of ``names``, or there are no layers.
    """
    if isinstance(alpha, Mapping):
        table: dict[str, float] = {}
        for pattern, value in alpha.items():
            table = dict.fromkeys(chosen(names, pattern), float(value)) | table
        return partial(_of_table, table)
    if isinstance(alpha, tuple):
        return _over_depth(alpha, all_names or names)
    return partial(_of_table, {}, otherwise=float(alpha))


def _of_table(table: Mapping[str, float], name: str, *, otherwise: float = 0.0) -> float:
    return table.get(name, otherwise)


def _over_depth(alpha: tuple[float, ...], names: Sequence[str]) -> Callable[[str], float]:
    depths = depths_of(names)
    if not depths:
        raise RecipeError("alpha is given over depth, but no tensor lies in a numbered layer")
    return partial(_at_depth, alpha, depths)


def _at_depth(alpha: tuple[float, ...], depths: Mapping[str, int], name: str) -> float:
    block = block_of(name)
    if block is None:
        return alpha[0 if kind(name) == "embeddings" else -1]
    position = block[1] / max(1, depths[block[0]] - 1) * (len(alpha) - 1)
    return float(np.interp(position, range(len(alpha)), alpha))
