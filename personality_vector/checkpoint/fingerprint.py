"""Fingerprints: which model this is, by its content and not by its path."""

import hashlib
import math
import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

from personality_vector.checkpoint.header import NAMES, TensorEntry

_WINDOWS = 8
_WINDOW_BYTES = 512


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Names, shapes, dtypes and a fixed sample of the content of every tensor.

    Independent of shards and of the order of tensors. Every tensor is sampled at eight places of
    512 bytes, so two trainings of one architecture differ; an edit of a few rows that lie between
    the places, and nothing else, is not seen.
    """

    digest: str
    tensors: int
    parameters: int

    def __str__(self) -> str:
        return self.digest[:12]


def fingerprint(entries: Iterable[TensorEntry]) -> Fingerprint:
    """Return the fingerprint of a checkpoint; reads at most 4 KiB of each tensor."""
    ordered = sorted(entries, key=lambda entry: entry.name)
    digest = hashlib.blake2b(digest_size=16)
    with ExitStack() as open_files:
        files = {
            path: open_files.enter_context(path.open("rb"))
            for path in {entry.file for entry in ordered}
        }
        for entry in ordered:
            digest.update(f"{entry.name}|{NAMES[entry.dtype]}|{list(entry.shape)}|".encode())
            for start, size in _windows(entry):
                digest.update(os.pread(files[entry.file].fileno(), size, start))
    return Fingerprint(
        digest.hexdigest(), len(ordered), sum(math.prod(entry.shape) for entry in ordered)
    )


def _windows(entry: TensorEntry) -> Iterable[tuple[int, int]]:
    """Return ``(start, size)`` of the sampled bytes: all of a small tensor, else eight windows."""
    size = entry.end - entry.start
    if size <= _WINDOWS * _WINDOW_BYTES:
        return [(entry.start, size)]
    stride = (size - _WINDOW_BYTES) / (_WINDOWS - 1)
    return [(entry.start + int(index * stride), _WINDOW_BYTES) for index in range(_WINDOWS)]
