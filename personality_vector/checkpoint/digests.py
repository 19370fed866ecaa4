"""Digests of every byte of files: XXH3-128, on all cores, kept from one run to the next.

XXH3 is not cryptographic: it tells whether bytes are the same, not whether somebody forged them.
"""

import operator
import time
from collections.abc import Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from personality_vector.checkpoint import digest_cache
from personality_vector.checkpoint.ranges import Stamp, leased, read
from personality_vector.errors import CheckpointError, DataError
from personality_vector.numeric.parallel import in_parallel

Range = tuple[int, int]
"""First byte, and the one after the last."""

_SETTLED_NS = 3 * 10**9
"""A file that was written to more recently than this is hashed every time: its next change may
carry the same time stamp, since some file systems count in steps of two seconds."""

_WORTH_KEEPING = 1 << 22
"""Bytes of a file from which its digests are kept: a smaller one is read as fast as its entry."""


def new_digest() -> Any:
    """Return an empty digest, with ``update`` and ``hexdigest``."""
    return xxhash.xxh3_128()


@dataclass(frozen=True, slots=True)
class Wanted:
    """An open file, and the ranges whose digests are wanted."""

    file: Path
    descriptor: int
    ranges: Collection[Range]


@dataclass(frozen=True, slots=True)
class _Job:
    file: Path
    descriptor: int
    range: Range

    @property
    def size(self) -> int:
        return self.range[1] - self.range[0]


def digests(files: Collection[Wanted]) -> dict[Path, Mapping[Range, str]]:
    """Return the digest of every wanted range of every file, in hex.

    One that was computed before is not computed again while size, inode and time stamps of the
    file are what they were. A program that writes through a memory map can evade that, as it does
    that of git and make: the kernel stamps such writes late.

    Raises:
        CheckpointError: A file is changed while it is being read, or ends before a range does.
        OSError: It cannot be read.
    """
    begun = time.time_ns()
    stamps = {one.file: Stamp.of(one.descriptor) for one in files}
    found = {file: _kept(file, stamp) for file, stamp in stamps.items()}
    missing = [
        _Job(one.file, one.descriptor, part)
        for one in files
        for part in set(one.ranges) - set(found[one.file])
    ]
    # The largest first, so that no core is left alone with one at the end.
    missing.sort(key=operator.attrgetter("size"), reverse=True)
    opened = {job.file: job.descriptor for job in missing}
    # Closed, so that no thread reads on when the leases are given up.
    with leased(opened.values()), closing(in_parallel(_hashed, missing)) as done:
        for job, digest in zip(missing, done, strict=True):
            found[job.file][job.range] = digest
    for file, descriptor in opened.items():
        _keep(file, stamps[file], Stamp.of(descriptor), begun, found[file])
    return {one.file: found[one.file] for one in files}


def _hashed(job: _Job) -> str:
    digest = new_digest()
    for piece in read(job.descriptor, job.file, *job.range):
        digest.update(piece)
    return str(digest.hexdigest())


def _kept(file: Path, stamp: Stamp) -> dict[Range, str]:
    return digest_cache.load(file, stamp) if stamp.size >= _WORTH_KEEPING else {}


def _keep(file: Path, before: Stamp, after: Stamp, begun: int, found: Mapping[Range, str]) -> None:
    if before.content != after.content:
        raise CheckpointError(f"{file}: was changed while it was being read")
    is_settled = max(before.mtime_ns, before.ctime_ns) + _SETTLED_NS < begun
    if before == after and is_settled and before.size >= _WORTH_KEEPING:
        digest_cache.store(file, before, found)


def content_of(path: Path) -> str:
    """Return a digest of every byte of a file, or of every file in a folder.

    The name of a file does not count; those of the files in a folder do, relative to the folder.

    Raises:
        DataError: There is nothing, or it cannot be read.
        CheckpointError: It is changed while it is being read.
    """
    try:
        if not path.is_dir():
            return _of_file(path)
        files = sorted(found for found in path.rglob("*") if found.is_file())
        return _of_folder(path, files) if files else _of_file(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _of_folder(folder: Path, files: list[Path]) -> str:
    whole = new_digest()
    for file, digest in zip(files, in_parallel(_of_file, files), strict=True):
        whole.update(
            f"{digest} {file.relative_to(folder).as_posix()}\0".encode(errors="surrogateescape")
        )
    return str(whole.hexdigest())


def _of_file(file: Path) -> str:
    with file.open("rb", buffering=0) as stream:
        part = (0, Stamp.of(stream.fileno()).size)
        return digests([Wanted(file, stream.fileno(), [part])])[file][part]
