"""Digests of every byte of files, folders and models: XXH3-128, on all cores, kept between runs.

XXH3 is not cryptographic: it tells whether bytes are the same, not whether somebody forged them.
Kept digests lie in one small file for each file that was hashed. A folder that cannot be written,
or an entry that is damaged or out of date, only costs the time of hashing again.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import xxhash

from personality_vector.errors import CheckpointError, DataError
from personality_vector.files.ranges import MAPPED, Stamp, leased, read
from personality_vector.files.reading import open_regular, parse_json
from personality_vector.lab import cache_folder
from personality_vector.numeric.parallel import in_parallel

_SETTLED_NS = 3 * 10**9
"""A file that was written to more recently than this is hashed every time: its next change may
carry the same time stamp, since some file systems count in steps of two seconds."""

_WORTH_KEEPING = 1 << 22
"""Size of a file from which its digests are kept; a smaller file is read as fast as its entry."""

_ENTRY_VERSION = 1
_MOST = 4096
"""Number of entries in the folder; beyond it the older half is deleted."""

_AHEAD = "personality_vector.files.ahead"
_ahead: subprocess.Popen[bytes] | None = None
_is_forgotten = False


class Range(NamedTuple):
    """Some bytes of an open file, from the first byte of the place to the one after the last."""

    file: Path
    descriptor: int
    place: tuple[int, int]


def digests(ranges: Sequence[Range]) -> list[str]:
    """Return the digest of every range, in hex.

    A digest that was computed before is not computed again while size, inode and time stamps of
    the file stay the same. A program that writes through a memory map can evade that check, as it
    evades those of git and make, because the kernel stamps such writes late.

    Raises:
        CheckpointError: A file is changed while it is being read, or ends before a range does.
        OSError: It cannot be read.
    """
    begun = time.time_ns()
    if _ahead is not None:
        _ahead.wait()
    files = {one.file: one.descriptor for one in ranges}
    stamps = {file: Stamp.of(descriptor) for file, descriptor in files.items()}
    found = {file: _kept(file, stamp) for file, stamp in stamps.items()}
    missing = [one for one in set(ranges) if one.place not in found[one.file]]
    opened = {one.file: one.descriptor for one in missing}
    spans = _spans(missing)
    # Closed, so that no thread reads on when the leases are given up.
    with leased(opened.values()), closing(in_parallel(_hashed, spans)) as done:
        for span, hashed in zip(spans, done, strict=True):
            for one, digest in zip(span, hashed, strict=True):
                found[one.file][one.place] = digest
    for file, descriptor in opened.items():
        _keep(file, stamps[file], Stamp.of(descriptor), begun, found[file])
    return [found[one.file][one.place] for one in ranges]


def begin(models: Iterable[Path]) -> None:
    """Begin to hash the tensors of models in another process, while this one imports torch.

    The next call of :func:`digests` waits for it. Nothing is begun once torch is there, nor for
    models so small that their digests are not kept.
    """
    global _ahead
    with suppress(OSError):
        files = [file for path in models for file in path.glob("model*.safetensors")]
        large = {file.parent for file in files if file.stat().st_size >= _WORTH_KEEPING}
        if "torch" not in sys.modules and large:
            words = [sys.executable, "-P", "-m", _AHEAD, *(str(one.absolute()) for one in large)]
            nowhere = subprocess.DEVNULL
            _ahead = subprocess.Popen(words, stdin=nowhere, stdout=nowhere, stderr=nowhere)


def _spans(ranges: Iterable[Range]) -> list[list[Range]]:
    """Group ranges that follow each other in a file, as many as are mapped at once."""
    spans: list[list[Range]] = []
    for one in sorted(ranges):
        last = spans[-1][-1] if spans else None
        follows = last and (last.file, last.place[1]) == (one.file, one.place[0])
        if follows and one.place[1] - spans[-1][0].place[0] <= MAPPED:
            spans[-1].append(one)
        else:
            spans.append([one])
    # The largest first, so that no core is left alone with one at the end.
    return sorted(spans, key=lambda span: span[0].place[0] - span[-1].place[1])


def _hashed(span: Sequence[Range]) -> list[str]:
    """Return the digests of ranges that follow each other."""
    first, found = span[0], list[str]()
    pieces = read(first.descriptor, first.file, first.place[0], *(one.place[1] for one in span))
    for one in span:
        digest, left = xxhash.xxh3_128(), one.place[1] - one.place[0]
        while left:
            piece = next(pieces)
            digest.update(piece)
            left -= len(piece)
        found.append(str(digest.hexdigest()))
    return found


@contextmanager
def digests_forgotten() -> Generator[None]:
    """Read every byte again, whatever was seen before."""
    global _is_forgotten
    _is_forgotten = True
    try:
        yield
    finally:
        _is_forgotten = False


def content_of(path: Path) -> str:
    """Return a digest of every byte of a file, or of every file in a folder.

    The name of a file does not count; those of the files in a folder do, relative to the folder.

    Raises:
        DataError: There is nothing, or it cannot be read.
        CheckpointError: It is changed while it is being read.
    """
    try:
        inside = path.rglob("*") if path.is_dir() else ()
        files = sorted(found for found in inside if found.is_file())
        if not files:
            return _of_file(path)
        whole = xxhash.xxh3_128()
        for file, digest in zip(files, in_parallel(_of_file, files), strict=True):
            row = f"{digest} {file.relative_to(path).as_posix()}\0"
            whole.update(row.encode(errors="surrogateescape"))
        return str(whole.hexdigest())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _of_file(file: Path) -> str:
    with open_regular(file) as stream:
        place = (0, Stamp.of(stream.fileno()).size)
        return digests([Range(file, stream.fileno(), place)])[0]


def _kept(file: Path, stamp: Stamp) -> dict[tuple[int, int], str]:
    """Return the digests of ranges of a file that were kept when it had this stamp."""
    if stamp.size < _WORTH_KEEPING or _is_forgotten:
        return {}
    # RuntimeError: a user without a home. KeyError, TypeError: the layout of another version.
    with suppress(OSError, ValueError, RuntimeError, KeyError, TypeError):
        check, _, text = _entry(file).read_text(encoding="ascii").partition("\n")
        if check == _check(text):
            entry = parse_json(text)
            if entry["of"] == _of(file, stamp):
                return {(start, end): digest for start, end, digest in entry["digests"]}
    return {}


def _keep(
    file: Path, before: Stamp, after: Stamp, begun: int, found: Mapping[tuple[int, int], str]
) -> None:
    """Keep the digests of ranges of a file, and replace what was kept for it before."""
    if before.content != after.content:
        raise CheckpointError(f"{file}: was changed while it was being read")
    if before != after or not is_worth_keeping(before, begun):
        return
    rows = [[*place, digest] for place, digest in found.items()]
    text = json.dumps({"of": _of(file, before), "digests": rows})
    with suppress(OSError, RuntimeError):
        target = _entry(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        # A process that reads during this write finds a damaged entry and hashes the file itself.
        target.write_text(f"{_check(text)}\n{text}", encoding="ascii")
        entries = list(target.parent.iterdir())
        if len(entries) > _MOST:
            entries.sort(key=lambda entry: entry.stat().st_mtime)
            for entry in entries[: len(entries) // 2]:
                entry.unlink(missing_ok=True)


def is_worth_keeping(stamp: Stamp, now: int) -> bool:
    """Return whether a file's digests are kept: it is large, and its time stamp is not too new."""
    is_settled = max(stamp.mtime_ns, stamp.ctime_ns) + _SETTLED_NS < now
    return is_settled and stamp.size >= _WORTH_KEEPING


def _of(file: Path, stamp: Stamp) -> list[object]:
    return [_ENTRY_VERSION, str(file.absolute()), *stamp]


def _entry(file: Path) -> Path:
    return (
        cache_folder("digests") / f"{xxhash.xxh3_128_hexdigest(os.fsencode(file.absolute()))}.json"
    )


def _check(text: str) -> str:
    return str(xxhash.xxh3_128_hexdigest(text.encode()))
