"""Fingerprints: which model this is, by its content and not by its path."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path

from personality_vector.checkpoint.digests import Wanted, digests, new_digest
from personality_vector.checkpoint.header import NAMES, TensorEntry

_VERSION = "v2"
"""Begins a digest. Those of earlier versions, which saw a sample of the bytes, are bare hex."""


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
    found = _of_tensors(ordered, descriptor)
    whole = new_digest()
    for entry in ordered:
        kind = f"{entry.name}|{NAMES[entry.dtype]}|{list(entry.shape)}"
        whole.update(f"{kind}|{found[entry.name]}\n".encode())
    parameters = sum(math.prod(entry.shape) for entry in ordered)
    return Fingerprint(_VERSION + whole.hexdigest(), len(ordered), parameters)


def _of_tensors(
    entries: Iterable[TensorEntry], descriptor: Callable[[Path], int]
) -> dict[str, str]:
    """Return the digest of the bytes of every tensor."""
    by_file = {
        file: {entry.name: (entry.start, entry.end) for entry in within}
        for file, within in groupby(sorted(entries, key=attrgetter("file")), attrgetter("file"))
    }
    found = digests(
        [Wanted(file, descriptor(file), ranges.values()) for file, ranges in by_file.items()]
    )
    return {
        name: found[file][part] for file, ranges in by_file.items() for name, part in ranges.items()
    }
