"""Opening SQLite durably, and saying in our words what went wrong."""

import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from personality_vector.errors import (
    CheckpointError,
    DataError,
    LockedError,
    PersonalityVectorError,
    StorageError,
)

_SECONDS_TO_WAIT = 30.0
_STORAGE = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PERM,
}


def connect(path: Path) -> sqlite3.Connection:
    """Open ``path`` with write-ahead logging and synchronous FULL; transactions are explicit."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=_SECONDS_TO_WAIT, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        except BaseException:
            connection.close()
            raise
        return connection


@contextmanager
def transaction(connection: sqlite3.Connection, path: Path) -> Generator[None]:
    """Commit what the block writes, or nothing of it."""
    with explained(path):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


@contextmanager
def explained(path: Path) -> Generator[None]:
    """Turn errors of SQLite and of the disk into ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise _explanation(path, error) from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error


def _explanation(path: Path, error: sqlite3.Error) -> PersonalityVectorError:
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}:
        return LockedError(f"{path}: another process is writing there; wait for it or stop it")
    if code in _STORAGE:
        return StorageError(f"{path}: cannot be read or written: {error}")
    if code == sqlite3.SQLITE_CONSTRAINT:
        return DataError(f"{path}: two rows of a cell have the same key: {error}")
    return CheckpointError(f"{path}: not a results file, or a damaged one: {error}")
