"""Chats as training rows: which tokens are learned, and which chats are left out or cut."""

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from personality_vector.data.chats import Selection, select_chats
from personality_vector.data.texts import words
from personality_vector.errors import DataError, RecipeError, TrainingError
from personality_vector.finetuning.recipe import TrainRecipe
from personality_vector.subject import Chat
from personality_vector.subject.encoding import training_row
from personality_vector.traits import Pole

log = logging.getLogger(__name__)

Row = dict[str, list[int]]
"""``input_ids``, and ``labels`` that are -100 on what is not learned."""


@dataclass(frozen=True, slots=True)
class Rows:
    """What a training learns from.

    Attributes:
        rows: The chats as tokens, cut to ``sft.max_length``.
        dropped: How many were left out, by reason.
        cut: How many were cut.
    """

    rows: list[Row]
    dropped: Mapping[str, int]
    cut: int

    def counts(self) -> dict[str, Any]:
        """Return how many are learned from, left out and cut."""
        return {"examples": len(self.rows), "dropped": dict(self.dropped), "cut": self.cut}

    def digest(self) -> str:
        """Return the digest of what is learned."""
        return hashlib.blake2b(json.dumps(self.rows).encode(), digest_size=16).hexdigest()


def rows_of(recipe: TrainRecipe, tokenizer: Any) -> Rows:
    """Return the training rows of a recipe with one pole.

    Raises:
        DataError: The data cannot be read or selects nothing, or the chat template cannot show it.
        TrainingError: ``sft.max_length`` leaves nothing to learn, or more than the model reads.
    """
    data = selected(recipe)
    whole = [training_row(tokenizer, chat) for chat in data.chats]
    rows, too_long, cut = shortened(whole, recipe.sft.max_length, tokenizer.most_tokens)
    return Rows(rows, dict(+Counter({**data.dropped, "too long": too_long})), cut)


def held_out_rows_of(recipe: TrainRecipe, tokenizer: Any) -> Rows:
    """Return the rows that ``sft.evaluate_every`` measures on: the held-out part of the data.

    Raises: as :func:`rows_of`.
    """
    apart = recipe.data.model_copy(update={"part": "held_out", "limit": None})
    return rows_of(recipe.model_copy(update={"data": apart, "match_lengths": False}), tokenizer)


def selected(recipe: TrainRecipe) -> Selection:
    """Return the chats of the pole, matched in length with those of its opposite if asked.

    Raises:
        DataError: The data cannot be read or selects nothing.
    """
    if recipe.pole is None:
        raise RecipeError("a recipe with poles is trained by train_poles, one pole after the other")
    data = select_chats(recipe.data.narrowed(recipe.pole))
    if not recipe.match_lengths:
        return data
    other = select_chats(recipe.data.narrowed(recipe.pole.opposite)).chats
    if other == data.chats:
        raise DataError(
            f"{recipe.data.source}: match_lengths compares both poles, and the data do not tell "
            "them apart; leave match_lengths out"
        )
    chats = matched_in_length(data.chats, other)
    if not chats:
        raise TrainingError(
            f"match_lengths: no reply of {recipe.pole} is as long as one of "
            f"{recipe.pole.opposite}; leave match_lengths out"
        )
    unmatched = {"unmatched length": len(data.chats) - len(chats)}
    return Selection(chats, dict(+Counter({**data.dropped, **unmatched})))


def require_distinct(digests: Mapping[Pole, str], source: object) -> None:
    """Check that no two poles learn the same rows.

    Args:
        digests: Of the rows of each pole.
        source: Where the data are, for the message.

    Raises:
        DataError: Two do, since the data do not name both trait and level.
    """
    learned: dict[str, Pole] = {}
    for pole, digest in digests.items():
        other = learned.setdefault(digest, pole)
        if other != pole:
            raise DataError(
                f"{source}: {other} and {pole} would learn the same chats, since its "
                "rows do not name trait and level; add these columns, or name a file of each pole "
                "with {trait} and {level} in data.source"
            )


def matched_in_length(chats: Sequence[Chat], others: Sequence[Chat]) -> list[Chat]:
    """Return as many chats of each length as the others have, the first of each, in their order.

    The length of a reply is its number of words; two lengths are alike within a factor of about
    1.4, the square root of 2.
    """
    room = Counter(map(_length, others))
    found = []
    for chat in chats:
        length = _length(chat)
        if room[length]:
            room[length] -= 1
            found.append(chat)
    return found


def _length(chat: Chat) -> int:
    return round(2 * math.log2(max(1, len(words(chat[-1]["content"])))))


def shortened(whole: Sequence[Row], most: int, reads: int | None) -> tuple[list[Row], int, int]:
    """Return rows of at most ``most`` tokens, and how many were left out and cut for it.

    Args:
        whole: The rows.
        most: ``sft.max_length``; a row with nothing to learn within it is left out.
        reads: How many tokens the model reads, if there is a bound.

    Raises:
        TrainingError: They leave nothing of any, or more than the model reads.
    """
    starts, sizes = [_start(row["labels"]) for row in whole], [len(row["labels"]) for row in whole]
    rows = [
        {key: values[:most] for key, values in row.items()}
        for row, start in zip(whole, starts, strict=True)
        if start < most
    ]
    longest = max((len(row["labels"]) for row in rows), default=0)
    if reads is not None and longest > reads:
        raise TrainingError(
            f"sft.max_length: allows chats of {longest:,} tokens, and the model reads at most "
            f"{reads:,}; set it to {reads} or less"
        )
    too_long = len(whole) - len(rows)
    cut = sum(map(most.__lt__, sizes)) - too_long
    if not rows:
        raise TrainingError(
            f"sft.max_length: {most} tokens cut away every completion, since the shortest prompt "
            f"has {min(starts)}; {max(sizes)} would hold every chat"
        )
    if too_long or cut:
        log.warning(
            "sft.max_length: %d tokens are too few for %d of %d chats (dropped for want of a "
            "completion: %d, cut: %d); %d would hold every chat",
            *(most, too_long + cut, len(sizes), too_long, cut, max(sizes)),
        )
    return rows, too_long, cut


def _start(labels: list[int]) -> int:
    """Return where a completion starts: -100 stands for a token that is not learned."""
    return next((at for at, label in enumerate(labels) if label >= 0), len(labels))


def shown(tokenizer: Any, row: Row) -> str:
    """Return a row as text in which what is learned stands between ``«`` and ``»``."""
    parts, learned = [], False
    for token, label in [*zip(row["input_ids"], row["labels"], strict=True), (None, -100)]:
        if (label >= 0) != learned:
            parts.append("«" if label >= 0 else "»")
            learned = label >= 0
        parts.append("" if token is None else tokenizer.decode([token]))
    return "".join(parts)
