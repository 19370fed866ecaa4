"""The digest that earlier versions knew a model by: a sample of its bytes, not all of them.

Manifests and vectors written by those versions still name a model by it. It is computed for the
sake of comparing with them, and for nothing else.
"""

import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from personality_vector.checkpoint.header import NAMES, TensorEntry
from personality_vector.checkpoint.ranges import read

_WINDOWS = 8
_WINDOW_BYTES = 512
_HEX = re.compile(r"[0-9a-f]{32}")


def is_sampled(digest: str) -> bool:
    """Return whether a digest of a model was recorded by an earlier version.

    >>> is_sampled("0123456789abcdef0123456789abcdef")
    True
    """
    return _HEX.fullmatch(digest) is not None


def sampled(entries: Iterable[TensorEntry], descriptor: Callable[[Path], int]) -> str:
    """Return what an earlier version would have recorded: it reads at most 4 KiB of a tensor."""
    digest = hashlib.blake2b(digest_size=16)
    for entry in sorted(entries, key=lambda entry: entry.name):
        digest.update(f"{entry.name}|{NAMES[entry.dtype]}|{list(entry.shape)}|".encode())
        for start, size in _windows(entry):
            for piece in read(descriptor(entry.file), entry.file, start, start + size):
                digest.update(piece)
    return digest.hexdigest()


def _windows(entry: TensorEntry) -> Iterable[tuple[int, int]]:
    """Return ``(start, size)`` of the sampled bytes: all of a small tensor, else eight windows."""
    size = entry.end - entry.start
    if size <= _WINDOWS * _WINDOW_BYTES:
        return [(entry.start, size)]
    stride = (size - _WINDOW_BYTES) / (_WINDOWS - 1)
    return [(entry.start + int(index * stride), _WINDOW_BYTES) for index in range(_WINDOWS)]
