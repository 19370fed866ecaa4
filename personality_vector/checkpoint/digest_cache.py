"""Digests kept on disk, one small file for each file that was hashed.

A folder that cannot be written and an entry that is damaged, or of a file as it was before, cost
the time of hashing again and nothing else.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import xxhash

from personality_vector.checkpoint.ranges import Stamp

_VARIABLE = "PVEC_CACHE"
_VERSION = 1
_MOST = 4096
"""Entries in the folder; beyond that the older half goes."""


def folder() -> Path:
    """Return where digests are kept: in ``PVEC_CACHE``, or else in the user's cache folder."""
    given, shared = os.environ.get(_VARIABLE), os.environ.get("XDG_CACHE_HOME", "")
    if given:
        return Path(given).expanduser() / "digests"
    # The standard has a relative path ignored.
    home = Path(shared) if Path(shared).is_absolute() else Path("~/.cache").expanduser()
    return home / "personality-vector" / "digests"


def load(file: Path, stamp: Stamp) -> dict[tuple[int, int], str]:
    """Return the digests of ranges of a file that were stored when it had this stamp."""
    # RuntimeError: a user without a home. KeyError, TypeError: the layout of another version.
    with contextlib.suppress(OSError, ValueError, RuntimeError, KeyError, TypeError):
        check, _, text = _entry(file).read_text(encoding="ascii").partition("\n")
        if check == _check(text):
            entry = json.loads(text)
            if entry["of"] == _of(file, stamp):
                return {(start, end): digest for start, end, digest in entry["digests"]}
    return {}


def store(file: Path, stamp: Stamp, digests: Mapping[tuple[int, int], str]) -> None:
    """Keep the digests of ranges of a file, in place of all that was kept of it."""
    rows = [[start, end, digest] for (start, end), digest in digests.items()]
    text = json.dumps({"of": _of(file, stamp), "digests": rows})
    with contextlib.suppress(OSError, RuntimeError):
        target = _entry(file)
        target.parent.mkdir(parents=True, exist_ok=True)
        _write(target, f"{_check(text)}\n{text}")
        _forget_old(target.parent)


def _write(target: Path, text: str) -> None:
    """Replace a file in one step, whatever other processes write there."""
    descriptor, name = tempfile.mkstemp(dir=target.parent, suffix=".partial")
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(text)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _forget_old(where: Path) -> None:
    entries = list(where.iterdir())
    if len(entries) > _MOST:
        entries.sort(key=lambda entry: entry.stat().st_mtime)
        for entry in entries[: len(entries) // 2]:
            entry.unlink(missing_ok=True)


def _of(file: Path, stamp: Stamp) -> list[object]:
    return [_VERSION, str(file.absolute()), *stamp]


def _entry(file: Path) -> Path:
    return folder() / f"{xxhash.xxh3_128_hexdigest(os.fsencode(file.absolute()))}.json"


def _check(text: str) -> str:
    return str(xxhash.xxh3_128_hexdigest(text.encode()))
