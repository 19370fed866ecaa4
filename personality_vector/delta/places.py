"""Where each tensor of a delta belongs in another model, or why it belongs nowhere.

Two models agree by name and shape, by the sizes in their configurations, by what the rows of their
embeddings mean, and by whether they have a head of their own. Weights are not read.
"""

import filecmp
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from personality_vector.checkpoint import Checkpoint
from personality_vector.checkpoint.names import beginning, canonical, canonical_names, kind
from personality_vector.checkpoint.reader import read_json
from personality_vector.delta.delta import Delta
from personality_vector.errors import CheckpointError, TensorMismatchError

_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")
_LAYER = re.compile(r"model\.layers\.(\d+)\.")
_BY_VOCABULARY = ("embeddings", "head")
_REMEDY = "exclude embeddings and head to leave them alone"


@dataclass(frozen=True)
class Move:
    """A delta, the base that it was taken from, and the model that it goes to."""

    delta: Delta
    of: Checkpoint
    target: Checkpoint

    def places(self, kept: Sequence[str], excluded: Callable[[str], bool]) -> dict[str, str]:
        """Return ``{name in the target: name in the delta}`` of the tensors ``kept``.

        Raises:
            TensorMismatchError: One has no place there; or the models differ in size, in
                vocabulary or in whether they have a head.
        """
        by_vocabulary = any(kind(name) in _BY_VOCABULARY for name in kept)
        if by_vocabulary:
            self._require_one_head(excluded)
        theirs = self._counterparts()
        places = {self._place(name, theirs): name for name in kept}
        if self._odd_sizes:
            self._refuse(f"{self.of.path} and {self.target.path} differ in {self._odd_sizes}")
        if by_vocabulary:
            self._require_same_tokens()
        return places

    def _counterparts(self) -> dict[str, str]:
        """Return ``{name in the base of the delta: name in the target}``."""
        if self.of.names == self.target.names:
            return {name: name for name in self.of.names}
        ours, theirs = canonical_names(self.of), canonical_names(self.target)
        return {name: theirs[given] for given, name in ours.items() if given in theirs}

    def _place(self, name: str, counterparts: Mapping[str, str]) -> str:
        place = counterparts.get(name)
        if place is None:
            word = kind(name)
            what = f"'{beginning(name)}*'" if word == "vision" else word
            remedy = f"; exclude {what} to leave it out" if what else ""
            self._refuse(
                f"{name} of {self.of.path} has no place in {self.target.path}{self._sizes}{remedy}"
            )
        entry = self.target.entries[place]
        if entry.shape != self.delta.shape(name):
            self._refuse(self._odd_shape(name, place))
        if not entry.dtype.is_floating_point:
            self._refuse(
                f"{place} of {self.target.path} is {entry.dtype}; a delta is added to "
                "floating-point weights, not to quantised ones"
            )
        return place

    def _odd_shape(self, name: str, place: str) -> str:
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
        ours, theirs = _tokens(one), _tokens(other)
        odd = sorted(row for row in ours.keys() & theirs.keys() if ours[row] != theirs[row])
        if odd:
            self._refuse(
                f"the vocabularies differ in {len(odd)} tokens: {odd[0]} is {ours[odd[0]]!r} in "
                f"{self.of.path} and {theirs[odd[0]]!r} in {self.target.path}; {_REMEDY}"
            )

    def _refuse(self, why: str) -> NoReturn:
        raise TensorMismatchError(f"{self.delta.label}: {why}")

    @property
    def _sizes(self) -> str:
        return f" (the models differ in {self._odd_sizes})" if self._odd_sizes else ""

    @cached_property
    def _odd_sizes(self) -> str:
        """The sizes of the two language models that differ, as far as both are known."""
        ours, theirs = _stated_sizes(self.of), _stated_sizes(self.target)
        layers = _SIZES[0]
        if layers not in ours.keys() & theirs.keys():
            ours[layers], theirs[layers] = _depth(self.of), _depth(self.target)
        both = [key for key in _SIZES if key in ours and key in theirs]
        odd = [key for key in both if ours[key] != theirs[key]]
        return ", ".join(f"{key} ({ours[key]} and {theirs[key]})" for key in odd)


def _stated_sizes(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the sizes that ``config.json`` states; a size that is a default may be absent."""
    if not (checkpoint.path / "config.json").is_file():
        return {}
    text = checkpoint.config.get("text_config") or checkpoint.config
    return {key: text[key] for key in _SIZES if text.get(key) is not None}


def _depth(checkpoint: Checkpoint) -> int:
    found = (_LAYER.match(canonical(name)) for name in checkpoint.names)
    return len({match[1] for match in found if match})


def _tokens(file: Path) -> dict[int, str]:
    """Return ``{row of the embeddings: token}`` of a ``tokenizer.json``, without added tokens."""
    model = read_json(file).get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    try:
        if isinstance(vocabulary, list):  # Unigram: pairs of token and score
            return {row: str(token) for row, (token, _) in enumerate(vocabulary)}
        return {int(row): str(token) for token, row in dict(vocabulary or ()).items()}
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{file}: its model.vocab is not a vocabulary: {error}") from error
