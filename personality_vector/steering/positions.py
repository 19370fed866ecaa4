"""Which tokens are steered: a clause, and the columns that it selects in each row.

A clause is read against the prompt, so it means the same tokens in a prefill, in a chunk, in a step
of decoding, in any beam and in a teacher-forced pass.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from personality_vector.errors import DataError, RecipeError
from personality_vector.subject.prompts import Prompts

Span = tuple[int, int | float]
"""Columns ``begin .. end - 1``; the end may be infinite."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a clause.

    Attributes:
        kind: ``all``; ``prompt``; ``response``, every token after the prompt; ``last``, the last
            ``number`` tokens of the prompt; or ``after``, everything after the last token
            ``number`` of the prompt, including the response.
        number: Of tokens, or the id of one.
    """

    kind: str
    number: int = 0

    def span(self, prompts: Prompts, row: int) -> Span:
        """Return the columns that this means in one row.

        Raises:
            DataError: The token is not in the prompt, or the ids are not known.
        """
        begin, end = prompts.begins[row], prompts.ends[row]
        spans: dict[str, Span] = {
            "all": (begin, torch.inf),
            "prompt": (begin, end),
            "response": (end, torch.inf),
            "last": (max(begin, end - self.number), end),
        }
        return spans.get(self.kind) or (self._last_place(prompts, row) + 1, torch.inf)

    def __str__(self) -> str:
        return f"{self.kind} {self.number}" if self.kind in ("last", "after") else self.kind

    def _last_place(self, prompts: Prompts, row: int) -> int:
        if prompts.input_ids is None:
            raise DataError(f"positions after token {self.number}: the prompt has no token ids")
        ids = prompts.input_ids[row, : prompts.ends[row]].tolist()
        places = [c for c, token in enumerate(ids) if token == self.number]
        if not places or places[-1] < prompts.begins[row]:
            raise DataError(
                f"positions after token {self.number}: the prompt of row {row} lacks it, "
                "so nothing would be steered"
            )
        return places[-1]


@dataclass(frozen=True, slots=True)
class Positions:
    """A clause such as ``all``, ``response``, ``last 1 + response`` or ``after 13``.

    >>> str(Positions.parse("last 1+response"))
    'last 1 + response'
    """

    parts: tuple[Part, ...]

    @classmethod
    def parse(
        cls, clause: "str | Positions", tokenizer: Callable[[], Any] = lambda: None
    ) -> "Positions":
        """Read a clause.

        Args:
            clause: Parts joined by ``+``; a token is an id, or text if there is a tokenizer.
            tokenizer: Fetches what turns the text of a token into its id; called only if the
                clause has a text in it.

        Raises:
            RecipeError: The clause cannot be read, or a text is not exactly one token.
        """
        return cls(tuple(_part(word.strip(), tokenizer) for word in _split(str(clause))))

    @property
    def everywhere(self) -> bool:
        """Whether every token of every row is meant, so that no prompt has to be known."""
        return any(part.kind == "all" for part in self.parts)

    @property
    def response_only(self) -> bool:
        """Whether nothing of the prompt is meant."""
        return all(part.kind == "response" for part in self.parts)

    def spans(self, prompts: Prompts, row: int) -> tuple[Span, ...]:
        """Return the columns that are meant in one row.

        Raises:
            DataError: The prompt does not have what the clause asks for.
        """
        spans = tuple(part.span(prompts, row) for part in self.parts)
        if all(begin >= end for begin, end in spans):
            raise DataError(
                f"positions {self}: row {row} has an empty prompt, so none of it is steered"
            )
        return spans

    def mask(self, prompts: Prompts, columns: Int[Tensor, " seq"]) -> Bool[Tensor, "rows seq"]:
        """Return which of some columns are meant, in each row; raises like :meth:`spans`."""
        rows = []
        for row in range(len(prompts.ends)):
            inside = [(columns >= a) & (columns < b) for a, b in self.spans(prompts, row)]
            rows.append(torch.stack(inside).any(0))
        return torch.stack(rows)

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts))


def _split(text: str) -> list[str]:
    # A token may hold a plus sign itself: what follows `after` goes to the end.
    head, after, tail = text.partition("after ")
    words = [word for word in head.split("+") if word.strip() or not after]
    return [*words, after + tail] if after else words


def _part(text: str, tokenizer: Callable[[], Any]) -> Part:
    if text in ("all", "prompt", "response"):
        return Part(text)
    last = re.fullmatch(r"last\s+(\d+)", text)
    if last and int(last[1]):
        return Part("last", int(last[1]))
    after = re.fullmatch(r"after\s+(\S.*)", text)
    if after:
        return Part("after", _token(after[1], tokenizer))
    raise RecipeError(
        f"positions {text!r} cannot be read; a clause is all, prompt, response, last N or "
        "after TOKEN, joined by +"
    )


def _token(text: str, tokenizer: Callable[[], Any]) -> int:
    if text.isdigit():
        return int(text)
    found = tokenizer()
    if found is None:
        raise RecipeError(
            f"positions after {text!r}: without a tokenizer, give the token's id; "
            "in a clause of several parts, after TOKEN comes last"
        )
    ids = found(text, add_special_tokens=False)["input_ids"]
    if len(ids) != 1:
        raise RecipeError(
            f"positions after {text!r}: this tokenizer makes {len(ids)} tokens of it; "
            "give one token, such as the last mark before the reply"
        )
    return int(ids[0])


ALL = Positions((Part("all"),))
"""Every token: of the prompt and of the response."""
