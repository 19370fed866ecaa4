"""A model that counts what a study asks it, and answers nothing."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import cycle, islice

import torch
from torch import Tensor

from personality_vector.errors import DataError
from personality_vector.subject import (
    Chat,
    Reply,
    Sampling,
    answered,
    batched,
    digest_of,
    render,
)
from personality_vector.subject.draws import Draw
from personality_vector.subject.encoding import encode_chats, encode_prompts
from personality_vector.subject.subject import Subject

_SENTENCE = "I like to think about a question for a while before I say what I mean. "
_MOST_REPLIES, _MOST_TOKENS = 20_000, 4_096
"""Replies to count at one point, and tokens of one that other measures read."""


class TooManyError(DataError):
    """So many replies are asked for that counting them would take long."""


@dataclass(slots=True)
class Counts:
    """What a model is asked, added up.

    Attributes:
        replies: Number of replies.
        tokens_in: Tokens of their prompts.
        tokens_out: Their tokens, if each is as long as it may be.
        steps: Passes of decoding after the first of each batch; a point's share of those of a
            batch that several points share.
        tokens_read: Tokens of finished chats, whose likelihood or predictions are wanted.
        predicted: Tokens whose predictions are wanted.
        held: The most tokens whose predictions points that share a batch hold at once.
        asked: The largest batch that was asked, and how.
        read: The chats of the largest batch that was read.
        longest: Tokens of the longest prompt, and of the longest chat that is read.
    """

    replies: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    steps: float = 0.0
    tokens_read: int = 0
    predicted: int = 0
    held: int = 0
    asked: tuple[Sequence[Chat], Sampling] = ((), Sampling())
    read: Sequence[Chat] = ()
    longest: tuple[int, int] = (0, 0)

    def add_replies(
        self, chats: Sequence[Chat], tokens: Sequence[int], how: Sampling, points: int, draws: int
    ) -> None:
        """Count the replies of a draw to prompts of so many tokens.

        A point has ``draws`` of them, and shares batches with the others of ``points``.

        Raises:
            TooManyError: There are so many that counting them would take long.
        """
        if self.replies > _MOST_REPLIES:
            raise TooManyError(f"asks for more than {_MOST_REPLIES:,} replies at one point")
        self.replies += len(chats)
        self.tokens_in += sum(tokens)
        self.tokens_out += how.max_new_tokens * len(chats)
        for batch in batched(chats, how.batch_size):
            together = min(points * draws, how.batch_size // len(batch))
            batches = math.ceil(points * draws / together)
            self.steps += (how.max_new_tokens - 1) * batches / (points * draws)
            self.asked = max(self.asked, ([*batch] * together, how), key=lambda one: len(one[0]))
        self.longest = max(self.longest[0], *tokens), self.longest[1]

    def add_read(self, chats: Sequence[Chat], tokens: Sequence[int]) -> None:
        """Count finished chats of so many tokens, which are in one batch with others."""
        self.tokens_read += sum(tokens)
        self.read = max(self.read, chats, key=len)
        self.longest = self.longest[0], max(self.longest[1], *tokens)

    def add(self, other: "Counts", times: int) -> None:
        """Add what was counted elsewhere, so many times."""
        for name in ("replies", "tokens_in", "tokens_out", "steps", "tokens_read"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        self.held = max(self.held, other.held)
        self.asked = max(self.asked, other.asked, key=lambda one: len(one[0]))
        self.read = max(self.read, other.read, key=len)
        asked, read = zip(self.longest, other.longest, strict=True)
        self.longest = max(asked), max(read)


@dataclass(frozen=True, slots=True, eq=False)
class CountingSubject(Subject):
    """A model that counts what it is asked, and replies at the greatest length.

    Attributes:
        counts: What was asked of one point.
        lengths: Tokens of prompts, by the digest of the chats.
        points: How many share batches.
    """

    counts: Counts = field(default_factory=Counts)
    lengths: dict[str, list[int]] = field(default_factory=dict)
    points: int = 1

    def replies_of(self, draws: Sequence[Draw]) -> list[list[Reply]]:
        """Count replies, unless they are remembered."""
        how = replace(self.sampling, **self.decoding)
        memory = {} if self.memory is None else self.memory
        keys = [digest_of(chats, how, seed) for chats, seed in draws]
        new = {key: chats for key, (chats, _) in zip(keys, draws, strict=True) if key not in memory}
        if not new:
            return [memory[key] for key in keys]
        text, most = self._longest_reply(how.max_new_tokens), how.max_new_tokens
        for key, chats in new.items():
            tokens = self._lengths(chats)
            self.counts.add_replies(chats, tokens, how, self.points, len(new))
            is_shared = self.points > 1
            memory[key] = [Reply(text, n, most, 0.0, is_shared=is_shared) for n in tokens]
        return [memory[key] for key in keys]

    def _lengths(self, chats: Sequence[Chat]) -> list[int]:
        """Return the tokens of each prompt; many samples are asked the same."""
        key = digest_of(chats)
        if key not in self.lengths:
            texts = [render(self.tokenizer, chat, reply_follows=True) for chat in chats]
            encoded = encode_prompts(self.tokenizer, texts, chats)
            self.lengths[key] = encoded["attention_mask"].sum(1).tolist()
        return self.lengths[key]

    def log_likelihood(self, chats: Sequence[Chat], batch_size: int = 32) -> Tensor:
        """Count the tokens of finished chats; return zeros."""
        for batch in batched(chats, batch_size):
            self._read(batch, batch_size)
        return torch.zeros(len(chats))

    def predictions(
        self, chats: Sequence[Chat], batch_size: int = 8
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Count the tokens of finished chats; yield predictions over two words."""
        for batch in batched(chats, max(1, batch_size // self.points)):
            counts = self._read(batch, batch_size)
            if self.points > 1:
                self.counts.held = max(self.counts.held, self.points * sum(counts))
            for count in counts:
                self.counts.predicted += count
                yield torch.zeros(count, dtype=torch.int64), torch.full((count, 2), math.log(0.5))

    def next_token(
        self, chats: Sequence[Chat], among: Sequence[int], batch_size: int = 8, opening: str = ""
    ) -> Tensor:
        """Count the tokens of prompts, as if none began alike; return equal likelihoods."""
        self.log_likelihood([answered(chat, f"{opening}A") for chat in chats], batch_size)
        return torch.full((len(chats), len(among)), -math.log(len(among)))

    def _read(self, chats: Sequence[Chat], batch_size: int) -> list[int]:
        """Count chats that each point has in a batch, and return the tokens of each response."""
        encoded = encode_chats(self.tokenizer, [self.edited(chat) for chat in chats])
        together = ([*chats] * self.points)[:batch_size]
        self.counts.add_read(together, encoded.attention_mask.sum(1).tolist())
        found: list[int] = encoded.response_mask.sum(1).tolist()
        return found

    def _longest_reply(self, tokens: int) -> str:
        ids = self.tokenizer(_SENTENCE, add_special_tokens=False)["input_ids"]
        repeated = islice(cycle(ids), min(tokens, _MOST_TOKENS))
        return str(self.tokenizer.decode(list(repeated))).strip()
