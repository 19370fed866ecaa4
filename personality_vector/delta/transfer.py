"""Moving a delta onto another model: one of the same shapes, or the language part of a VLM.

Chat vectors, Huang et al. 2023, arXiv:2310.04799, add a delta of one model to a relative of it:
``theta_target + alpha * (theta_tuned - theta_of)``. Names change on the way, numbers do not. Two
models have to agree in names and shapes, in the sizes of their configurations, in what the rows of
their embeddings mean, and in whether they have a head of their own. Weights are not read.
"""

import filecmp
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NoReturn

from personality_vector.checkpoint import (
    Checkpoint,
    beginning,
    canonical,
    counterparts,
    kind,
)
from personality_vector.delta.delta import Delta, digest
from personality_vector.delta.sources import Renamed
from personality_vector.delta.vocabulary import (
    Embeddings,
    Moved,
    Rows,
    counts,
    differ,
    digest_of_rows,
    is_by_token,
    rows_between,
    tokens_of,
)
from personality_vector.errors import (
    BaseMismatchError,
    RecipeError,
    TensorMismatchError,
)

_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_BY_VOCABULARY = ("embeddings", "head")
_REMEDY = "write embeddings: match to carry rows by token, or exclude embeddings and head"


@dataclass(frozen=True, slots=True)
class Transfer:
    """Says what a moved delta changes in its target, and what it leaves alone.

    Attributes:
        matched: Tensors of the target that it is added to.
        excluded: Tensors of the delta that were left out, as the delta calls them.
        left_alone: All other tensors of the target.
        tokens: Counts of tokens, if rows were carried by token.
    """

    matched: tuple[str, ...]
    excluded: tuple[str, ...]
    left_alone: tuple[str, ...]
    tokens: Mapping[str, int] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return counts as JSON-like data, with names grouped by what they begin with."""
        return {
            "matched": len(self.matched),
            "of": len(self.matched) + len(self.left_alone),
            "excluded": _grouped(self.excluded),
            "left_alone": _grouped(self.left_alone),
            **({"tokens": dict(self.tokens)} if self.tokens else {}),
        }


def transferred(
    delta: Delta,
    of: Checkpoint,
    target: Checkpoint,
    excluded: Callable[[str], bool],
    embeddings: Embeddings = "strict",
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
        embeddings: What becomes of embeddings and head where the two vocabularies differ.

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
    back = {} if embeddings == "strict" else counterparts(target, of)
    rows = rows_between(target, of, back) if embeddings == "match" else {}
    is_skipped = embeddings == "skip" and differ(target, of, back)
    left_out = tuple(
        name
        for name in delta.names
        if excluded(name) or excluded(canonical(name)) or (is_skipped and is_by_token(name))
    )
    kept = sorted(set(delta.names) - set(left_out))
    if not kept:
        raise RecipeError(f"{delta.label}: has {len(left_out)} tensors and all are excluded")
    own = _Move(delta, of, target, rows).places(kept, excluded)
    carried = {name: rows[name] for name in rows if name in own}
    shapes = {name: target.entries[name].shape for name in carried}
    identity = digest("without", delta.identity, *left_out) if left_out else delta.identity
    moved = replace(
        delta,
        source=Moved(delta.source, own, shapes, carried) if carried else Renamed(delta.source, own),
        base=target.fingerprint,
        identity=digest("tokens", identity, digest_of_rows(carried)) if carried else identity,
        directory=None,
    )
    rest = tuple(name for name in target.names if name not in own)
    return moved, Transfer(moved.names, left_out, rest, counts(carried, of) if carried else {})


@dataclass(frozen=True)
class _Move:
    """A delta, the base that it was taken from, and the model that it goes to."""

    delta: Delta
    of: Checkpoint
    target: Checkpoint
    rows: Mapping[str, Rows]

    def places(self, kept: Sequence[str], excluded: Callable[[str], bool]) -> dict[str, str]:
        """Return ``{name in the target: name in the delta}`` of the tensors ``kept``.

        Raises:
            TensorMismatchError: One has no place there; or the models differ in size, in
                vocabulary or in whether they have a head.
        """
        by_vocabulary = any(kind(name) in _BY_VOCABULARY for name in kept)
        if by_vocabulary:
            self._require_one_head(excluded)
        found = counterparts(self.of, self.target)
        places = {self._place(name, found): name for name in kept}
        if self._size_differences:
            self._refuse(
                f"{self.of.path} and {self.target.path} differ in {self._size_differences}"
            )
        if by_vocabulary and not self.rows:
            self._require_same_tokens()
        return places

    def _place(self, name: str, found: Mapping[str, str]) -> str:
        place = found.get(name)
        if place is None:
            word = kind(name)
            what = f"'{beginning(name)}*'" if word == "vision" else word
            remedy = f"; exclude {what} to leave it out" if what else ""
            self._refuse(
                f"{name} of {self.of.path} has no place in {self.target.path}{self._sizes}{remedy}"
            )
        entry = self.target.entries[place]
        if entry.shape != self.delta.shape(name) and place not in self.rows:
            self._refuse(self._shape_difference(name, place))
        if not entry.dtype.is_floating_point:
            self._refuse(
                f"{place} of {self.target.path} is {entry.dtype}; a delta is added to "
                "floating-point weights, not to quantised ones"
            )
        return place

    def _shape_difference(self, name: str, place: str) -> str:
        ours, theirs = self.delta.shape(name), self.target.entries[place].shape
        if kind(name) in _BY_VOCABULARY and ours[1:] == theirs[1:]:
            return (
                f"the vocabularies differ: {name} has {ours[0]} rows in {self.of.path} and "
                f"{theirs[0]} in {self.target.path}; {_REMEDY}"
            )
        there = "" if place == name else f"{place} has "
        return (
            f"{name} has shape {list(ours)} in {self.of.path}, {there}{list(theirs)} in "
            f"{self.target.path}{self._sizes}"
        )

    def _require_one_head(self, excluded: Callable[[str], bool]) -> None:
        models = (self.of, self.target)
        heads = [[name for name in model.names if kind(name) == "head"] for model in models]
        tied = [model for model, its in zip(models, heads, strict=True) if not its]
        found = heads[0] + heads[1]
        if len(tied) != 1 or all(excluded(name) or excluded(canonical(name)) for name in found):
            return
        untied = models[1 - models.index(tied[0])]
        self._refuse(
            f"{untied.path} has {found[0]} and {tied[0].path} has none, as its head is tied to its "
            "embeddings; exclude head to leave it out"
        )

    def _require_same_tokens(self) -> None:
        one, other = (model.path / "tokenizer.json" for model in (self.of, self.target))
        if not (one.is_file() and other.is_file()) or filecmp.cmp(one, other, shallow=False):
            return
        ours, theirs = (tokens_of(model) or {} for model in (self.of, self.target))
        differing = sorted(row for row in ours.keys() & theirs.keys() if ours[row] != theirs[row])
        if differing:
            row = differing[0]
            self._refuse(
                f"the vocabularies differ in {len(differing)} tokens: {row} is {ours[row]!r} in "
                f"{self.of.path} and {theirs[row]!r} in {self.target.path}; {_REMEDY}"
            )

    def _refuse(self, why: str) -> NoReturn:
        raise TensorMismatchError(f"{self.delta.label}: {why}")

    @property
    def _sizes(self) -> str:
        return f" (the models differ in {self._size_differences})" if self._size_differences else ""

    @cached_property
    def _size_differences(self) -> str:
        """The sizes of the two language models that differ, as far as both are known."""
        ours, theirs = _stated_sizes(self.of), _stated_sizes(self.target)
        layers = _SIZES[0]
        if layers not in ours.keys() & theirs.keys():
            ours[layers], theirs[layers] = _depth(self.of), _depth(self.target)
        both = [key for key in _SIZES if key in ours and key in theirs]
        differing = [key for key in both if ours[key] != theirs[key]]
        return ", ".join(f"{key} ({ours[key]} and {theirs[key]})" for key in differing)


def _stated_sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the sizes that ``config.json`` states; a size that is a default may be absent."""
    if not (checkpoint.path / "config.json").is_file():
        return {}
    text = checkpoint.config.get("text_config") or checkpoint.config
    return {key: text[key] for key in _SIZES if text.get(key) is not None}


def _depth(checkpoint: Checkpoint) -> int:
    found = (_LAYER.match(canonical(name)) for name in checkpoint.names)
    return len({match[1] for match in found if match})


def _grouped(names: Iterable[str]) -> dict[str, int]:
    """Count names by their beginning: ``{"model.visual.*": 129, "lm_head.weight": 1}``."""
    found = {name: beginning(name) for name in names}
    counts = Counter(found.values())
    return {
        name if counts[group] == 1 else f"{group}.*": counts[group] for name, group in found.items()
    }
