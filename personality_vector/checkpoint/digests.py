"""Digests of files."""

import hashlib
from pathlib import Path

from personality_vector.errors import DataError


def content_of(path: Path) -> str:
    """Return a digest of a file, or of every file in a folder.

    Raises:
        DataError: There is nothing.
    """
    files = sorted(found for found in path.rglob("*") if found.is_file()) or [path]
    digest = hashlib.blake2b(digest_size=16)
    try:
        for file in files:
            digest.update(file.name.encode() + file.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()
