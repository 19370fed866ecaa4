"""Fingerprints: which model this is, by its content and not by its path.

Manifests and vectors written by earlier versions still name a model by a sample of its bytes, not
by all of them. That is computed for the sake of comparing with them, and for nothing else.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from personality_vector.checkpoint.digests import Range, digests, new_digest
from personality_vector.checkpoint.header import NAMES, TensorEntry
from personality_vector.checkpoint.ranges import read

_VERSION = "v2"
"""Begins a digest. Those of earlier versions, which saw a sample of the bytes, are bare hex."""

_WINDOWS = 8
_WINDOW_BYTES = 512
_HEX = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Names, shapes, dtypes and every byte of every tensor, whatever files they lie in."""

    digest: str
    tensors: int
    parameters: int

    def __str__(self) -> str:
        return self.digest[:12]


def fingerprint(entries: Iterable[TensorEntry], descriptor: Callable[[Path], int]) -> Fingerprint:
    """Return the fingerprint of a checkpoint.

    Args:
        entries: Its tensors.
        descriptor: Returns that of an open file.

    Raises:
        CheckpointError: A file is changed while it is being read, or is shorter than it was.
        OSError: It cannot be read.
    """
    ordered = sorted(entries, key=attrgetter("name"))
    ranges = [Range(one.file, descriptor(one.file), (one.start, one.end)) for one in ordered]
    whole = new_digest()
    for entry, digest in zip(ordered, digests(ranges), strict=True):
        kind = f"{entry.name}|{NAMES[entry.dtype]}|{list(entry.shape)}"
        whole.update(f"{kind}|{digest}\n".encode())
    parameters = sum(math.prod(entry.shape) for entry in ordered)
    return Fingerprint(_VERSION + whole.hexdigest(), len(ordered), parameters)


def is_sampled(digest: str) -> bool:
    """Return whether a digest of a model was recorded by an earlier version.

    >>> is_sampled("0123456789abcdef0123456789abcdef")
    True
    """
    return _HEX.fullmatch(digest) is not None


def sampled(entries: Iterable[TensorEntry], descriptor: Callable[[Path], int]) -> str:
    """Return what an earlier version would have recorded: it reads at most 4 KiB of a tensor."""
    digest = hashlib.blake2b(digest_size=16)
    for entry in sorted(entries, key=attrgetter("name")):
        digest.update(f"{entry.name}|{NAMES[entry.dtype]}|{list(entry.shape)}|".encode())
        for start, size in _windows(entry):
            for piece in read(descriptor(entry.file), entry.file, start, start + size):
                digest.update(piece)
    return digest.hexdigest()


def _windows(entry: TensorEntry) -> Iterable[tuple[int, int]]:
    """Return ``(start, size)`` of the sampled bytes: all of a small tensor, else eight windows."""
    if entry.size <= _WINDOWS * _WINDOW_BYTES:
        return [(entry.start, entry.size)]
    stride = (entry.size - _WINDOW_BYTES) / (_WINDOWS - 1)
    return [(entry.start + int(index * stride), _WINDOW_BYTES) for index in range(_WINDOWS)]
