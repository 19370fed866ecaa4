"""Random numbers that depend on a name, never on the order of work.

:func:`uniform` is counter-based: element ``i`` of stream ``(seed, name)`` is a hash of ``i``, so
any part of a stream can be drawn alone, in any order, on any device, and is always the same.
"""

import hashlib

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from personality_vector.numeric.compiled import GOLDEN_GAMMA, MIX_1, MIX_2, draw


def key_for(seed: int, name: str) -> int:
    """Return a 63-bit key fixed by ``(seed, name)``."""
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator_for(seed: int, name: str) -> torch.Generator:
    """Return a CPU generator fixed by ``(seed, name)``, whatever the order of work."""
    return torch.Generator().manual_seed(key_for(seed, name))


def uniform(
    key: int, start: int, count: int, device: torch.device | str = "cpu"
) -> Float[Tensor, " count"]:
    """Return elements ``start .. start + count`` of the uniform stream of ``key``.

    Args:
        key: From :func:`key_for`.
        start: Index of the first element in the stream.
        count: Number of elements.
        device: Where to compute; the values do not depend on it.

    Returns:
        float32 in [0, 1), multiples of 2**-24, so every device agrees bit for bit.

    Source:
        The splitmix64 finaliser (Steele, Lea and Flood 2014) of ``key + (i + 1) * gamma``.
    """
    if torch.device(device).type == "cpu":
        drawn = torch.empty(count)
        draw(np.uint64(key), start, drawn.numpy())
        return drawn
    index = torch.arange(start + 1, start + count + 1, dtype=torch.int64, device=device)
    bits = index * _signed(GOLDEN_GAMMA) + key
    bits = (bits ^ _shift(bits, 30)) * _signed(MIX_1)
    bits = (bits ^ _shift(bits, 27)) * _signed(MIX_2)
    bits = bits ^ _shift(bits, 31)
    return _shift(bits, 40).to(torch.float32) * 2.0**-24


def _signed(bits: int) -> int:
    """Return 64 bits as a signed integer, the only kind that torch multiplies."""
    return bits - (1 << 64)


def _shift(bits: Tensor, places: int) -> Tensor:
    """Shift right and fill with zeros; ``>>`` on int64 would fill with the sign."""
    return (bits >> places) & ((1 << (64 - places)) - 1)
