"""Draws: chats that are asked at once, with which random numbers, and in how many calls."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from personality_vector.numeric.random import key_for
from personality_vector.subject.chat import Chat
from personality_vector.subject.protocols import Reply


class Draw(NamedTuple):
    """Chats that are replied to with the random numbers of one seed."""

    chats: Sequence[Chat]
    seed: int


Ask = Callable[[Sequence[Draw]], list[list[Reply]]]
"""Calls a model once for each chat; draws that are asked together share batches."""

Exchange = Callable[[Ask, Sequence[Draw]], list[list[Reply]]]
"""Makes the reply to each chat out of calls."""


def one_call(ask: Ask, draws: Sequence[Draw]) -> list[list[Reply]]:
    """Reply to each chat with one call, as a model does by itself."""
    return ask(draws)


def call_seed(seed: int, name: str) -> int:
    """Return the 46-bit seed of one of several calls, by its name.

    46 bits, because :func:`batch_seed` multiplies it by 100,003 and torch takes 63.
    """
    return key_for(seed, name) >> 17


def sample_seed(seed: int, sample: int) -> int:
    """Return the seed of repetition ``sample``."""
    return call_seed(seed, f"sample {sample}")


def batch_seed(seed: int, index: int) -> int:
    """Return the seed of the random numbers of batch ``index``."""
    return seed * 100_003 + index
