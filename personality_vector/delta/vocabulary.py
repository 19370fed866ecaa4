"""Rows of embeddings by the token that they stand for, between models of two vocabularies.

A fine-tune that added tokens, or a relative with other ones, has the embeddings of the tokens that
both know in other rows. ``match`` carries these; a row that has no counterpart is not changed.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
import xxhash
from jaxtyping import Float64, Int64
from torch import Tensor

from personality_vector.checkpoint import Checkpoint, counterparts, kind, read_json
from personality_vector.delta.sources import Renamed
from personality_vector.errors import CheckpointError

Embeddings = Literal["strict", "skip", "match"]
"""What becomes of embeddings and head where two vocabularies differ: a refusal; they are left out;
or rows are carried by token."""

_POSITIONS = ("wpe", "position")
Rows = Int64[Tensor, " rows"]
"""For every row of one model that of the same token in another; -1 where there is none."""


def is_by_token(name: str) -> bool:
    """Return whether the rows of a tensor stand for tokens."""
    return kind(name) in ("embeddings", "head") and not any(word in name for word in _POSITIONS)


def tokens_of(model: Checkpoint) -> dict[int, str] | None:
    """Return ``{row: token}`` of a ``tokenizer.json``, added tokens included, if there is one.

    Raises:
        CheckpointError: The file is damaged.
    """
    file = model.path / "tokenizer.json"
    if not file.is_file():
        return None
    table = read_json(file)
    parts = table.get("model")
    vocabulary = parts.get("vocab") if isinstance(parts, dict) else None
    try:
        if isinstance(vocabulary, list):  # Unigram: pairs of token and score
            found = {row: str(token) for row, (token, _) in enumerate(vocabulary)}
        else:
            found = {int(row): str(token) for token, row in dict(vocabulary or ()).items()}
        added = table.get("added_tokens") or ()
        return found | {int(token["id"]): str(token["content"]) for token in added}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: its model.vocab is not a vocabulary: {error}") from error


def rows_between(ours: Checkpoint, theirs: Checkpoint, own: Mapping[str, str]) -> dict[str, Rows]:
    """Return for each tensor by token the rows in which another model has our tokens.

    Args:
        ours: The model whose rows are wanted.
        theirs: The other one.
        own: From the name of a tensor in ours to that of the same one in theirs.

    Returns:
        Nothing, if every token that both have is in the same row, and the sizes are the same.

    Raises:
        CheckpointError: The sizes differ, and one of the two has no ``tokenizer.json``.
    """
    pairs = {
        name: (ours.entries[name].shape[0], theirs.entries[other].shape[0])
        for name, other in own.items()
        if is_by_token(name) and ours.entries[name].shape[1:] == theirs.entries[other].shape[1:]
    }
    one, other = tokens_of(ours), tokens_of(theirs)
    is_same_size = all(size == their_size for size, their_size in pairs.values())
    if one is None or other is None:
        if is_same_size:
            return {}
        lacking = ours if one is None else theirs
        raise CheckpointError(
            f"{lacking.path}: has no tokenizer.json, which embeddings: match finds tokens by; "
            "write embeddings: skip to leave embeddings and head alone"
        )
    if is_same_size and all(other[row] == token for row, token in one.items() if row in other):
        return {}
    places = {token: row for row, token in other.items()}
    found: dict[str, Rows] = {}
    for name, (size, their_size) in pairs.items():
        rows = torch.full((size,), -1, dtype=torch.int64)
        for row, token in one.items():
            place = places.get(token, -1)
            if row < size and place < their_size:
                rows[row] = place
        found[name] = rows
    return found


def counts(rows: Mapping[str, Rows], theirs: Checkpoint) -> dict[str, int]:
    """Return how many tokens are carried, how many rows keep their own, how many find no place."""
    most = max(rows.values(), key=len)
    carried = int((most >= 0).sum())
    known = len(tokens_of(theirs) or ())
    return {"carried": carried, "own": len(most) - carried, "without_place": known - carried}


def digest_of_rows(rows: Mapping[str, Rows]) -> str:
    """Return a digest of where rows come from."""
    whole = xxhash.xxh3_128()
    for name in sorted(rows):
        whole.update(name.encode() + rows[name].numpy().tobytes())
    return str(whole.hexdigest())


class ByToken(Checkpoint):
    """A fine-tune whose rows of embeddings are in the order of its base's tokens.

    A row of a token that it does not have is that of the base, so that their difference is zero.
    """

    def __init__(self, base: Checkpoint, tuned: Checkpoint, rows: Mapping[str, Rows]) -> None:
        entries = dict(tuned.entries)
        for name in rows:
            dtype = torch.promote_types(base.entries[name].dtype, tuned.entries[name].dtype)
            entries[name] = replace(entries[name], shape=base.entries[name].shape, dtype=dtype)
        super().__init__(tuned.path, entries, tuned.reference)
        self.base, self.tuned, self.rows = base, tuned, rows
        self.fingerprint = replace(
            tuned.fingerprint, digest=f"{tuned.fingerprint.digest}-{digest_of_rows(rows)}"
        )

    def part(self, name: str, part: slice, out: Tensor | None = None) -> Tensor:
        """Return entries as a checkpoint does; of embeddings by the tokens of the base."""
        if name not in self.rows:
            return self.tuned.part(name, part, out)
        shape, dtype = self.entries[name].shape, self.entries[name].dtype
        width = shape[1] if len(shape) > 1 else 1
        start, stop, _ = part.indices(shape[0] * width)
        found = self.base.part(name, slice(start, stop)).to(dtype)
        gather(found, self.rows[name], width, start, lambda one: self.tuned.part(name, one))
        return found if out is None else out.copy_(found)

    def renamed(self, own: Mapping[str, str]) -> Checkpoint:
        """Return the same fine-tune with some tensors by other names."""
        rows = {name: self.rows[other] for name, other in own.items() if other in self.rows}
        return ByToken(self.base, self.tuned.renamed(own), rows)

    def require_unchanged(self) -> None:
        """Check that no file that was read has been written to since it was opened."""
        self.tuned.require_unchanged()

    def __reduce__(self) -> tuple[Any, ...]:
        """Let another process open the same files."""
        return type(self), (self.base, self.tuned, self.rows)


def gather(out: Tensor, rows: Rows, width: int, start: int, read: Any) -> None:
    """Put into a run of entries what another tensor holds in the rows of the same tokens.

    Args:
        out: The entries from ``start`` on, flat; rows without a counterpart stay as they are.
        rows: Where the other tensor has each row.
        width: Number of entries of a row.
        start: Place of the first entry of ``out``.
        read: Returns entries of the other tensor, by a slice.
    """
    stop = start + len(out)
    first, last = start // width, -(-stop // width)
    chosen = rows[first:last].tolist()
    at = 0
    while at < len(chosen):
        end = at + 1
        while end < len(chosen) and chosen[at] >= 0 and chosen[end] == chosen[end - 1] + 1:
            end += 1
        if chosen[at] >= 0:
            # From the row or the entry in its middle where ``out`` begins, to that where it ends.
            begin, until = max(start, (first + at) * width), min(stop, (first + end) * width)
            shift = (chosen[at] - first - at) * width
            out[begin - start : until - start] = read(slice(begin + shift, until + shift))
        at = end


@dataclass(frozen=True)
class Moved(Renamed):
    """Tensors of another source under other names, their rows in the order of other tokens."""

    shapes: Mapping[str, tuple[int, ...]]
    """Of the tensors whose rows are carried, by their names here."""
    rows: Mapping[str, Rows]

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        own = {name: self.source.shape(own) for name, own in self.own.items()}
        return {**own, **self.shapes}

    def part(self, name: str, part: slice) -> Float64[Tensor, " entries"]:
        """Return the entries of the rows of the same tokens, and 0 where there is none."""
        if name not in self.rows:
            return super().part(name, part)
        found = torch.zeros(part.stop - part.start, dtype=torch.float64)
        width = math.prod(self.shapes[name][1:])
        own = self.own[name]
        gather(found, self.rows[name], width, part.start, lambda one: self.source.part(own, one))
        return found


def fitted(
    base: Checkpoint, tuned: Checkpoint, embeddings: Embeddings
) -> tuple[Checkpoint, Callable[[str], bool]]:
    """Return a fine-tune that fits its base, and whether a tensor is left out for that.

    Raises:
        CheckpointError: Rows are to be carried, and there is no ``tokenizer.json``.
    """
    if embeddings == "strict":
        return tuned, lambda _: False
    own = {name: name for name, other in counterparts(base, tuned).items() if name == other}
    if embeddings == "match" and (rows := rows_between(base, tuned, own)):
        return ByToken(base, tuned, rows), lambda _: False
    if embeddings == "skip" and differ(base, tuned, own):
        return tuned, is_by_token
    return tuned, lambda _: False


def differ(ours: Checkpoint, theirs: Checkpoint, own: Mapping[str, str]) -> bool:
    """Return whether two vocabularies differ, or may."""
    try:
        return bool(rows_between(ours, theirs, own))
    except CheckpointError:
        return True
