"""Fingerprints: which model a checkpoint is, by every byte of every tensor."""

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import xxhash

from personality_vector.checkpoint.tensors import NAMES, TensorEntry
from personality_vector.files.digests import Range, digests
from personality_vector.files.ranges import read

_VERSION = "v2"
"""Prefix of the digest of a model. Earlier versions wrote bare hex, of a sample of the bytes."""

_WINDOWS = 8
_WINDOW_BYTES = 512
_SAMPLED = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Names, shapes, dtypes and every byte of every tensor, whatever files they lie in."""

    digest: str
    tensors: int
    parameters: int

    def __str__(self) -> str:
        return self.digest[:12]


def digests_of(entries: Iterable[TensorEntry], descriptor: Callable[[Path], int]) -> dict[str, str]:
    """Return the digest of every tensor by name.

    Args:
        entries: The tensors.
        descriptor: Returns that of an open file.

    Raises:
        CheckpointError: A file is changed while it is being read, or is shorter than it was.
        OSError: It cannot be read.
    """
    ordered = sorted(entries, key=lambda entry: entry.name)
    ranges = [Range(one.file, descriptor(one.file), (one.start, one.end)) for one in ordered]
    return dict(zip((entry.name for entry in ordered), digests(ranges), strict=True))


def fingerprint(entries: Iterable[TensorEntry], found: Mapping[str, str]) -> Fingerprint:
    """Return the fingerprint of a checkpoint, from its tensors and their digests."""
    ordered = sorted(entries, key=lambda entry: entry.name)
    whole = xxhash.xxh3_128()
    for entry in ordered:
        row = f"{entry.name}|{NAMES[entry.dtype]}|{list(entry.shape)}|{found[entry.name]}\n"
        whole.update(row.encode())
    parameters = sum(math.prod(entry.shape) for entry in ordered)
    return Fingerprint(_VERSION + whole.hexdigest(), len(ordered), parameters)


def is_sampled(digest: str) -> bool:
    """Return whether a digest of a model was recorded by an earlier version.

    >>> is_sampled("0123456789abcdef0123456789abcdef")
    True
    """
    return _SAMPLED.fullmatch(digest) is not None


def sampled(entries: Iterable[TensorEntry], descriptor: Callable[[Path], int]) -> str:
    """Return the digest that an earlier version recorded, of at most 4 KiB of each tensor."""
    digest = hashlib.blake2b(digest_size=16)
    for entry in sorted(entries, key=lambda entry: entry.name):
        digest.update(f"{entry.name}|{NAMES[entry.dtype]}|{list(entry.shape)}|".encode())
        # All of a small tensor, eight windows of a larger one.
        size = entry.size if entry.size <= _WINDOWS * _WINDOW_BYTES else _WINDOW_BYTES
        stride = (entry.size - size) / (_WINDOWS - 1)
        for index in range(_WINDOWS if stride else 1):
            start = entry.start + int(index * stride)
            for piece in read(descriptor(entry.file), entry.file, start, start + size):
                digest.update(piece)
    return digest.hexdigest()
