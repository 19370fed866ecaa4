"""Durable SQLite files: transactions that survive a kill, and errors of this package."""

import sqlite3
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from personality_vector.errors import (
    CheckpointError,
    DataError,
    LockedError,
    PersonalityVectorError,
    StorageError,
)

_SECONDS_TO_WAIT = 30.0
_LOCKED = (LockedError, "another process is writing there; wait for it or stop it")
_STORAGE = (StorageError, "cannot be read or written: {error}")
_MEANINGS: dict[int, tuple[type[PersonalityVectorError], str]] = {
    sqlite3.SQLITE_BUSY: _LOCKED,
    sqlite3.SQLITE_LOCKED: _LOCKED,
    sqlite3.SQLITE_FULL: _STORAGE,
    sqlite3.SQLITE_IOERR: _STORAGE,
    sqlite3.SQLITE_READONLY: _STORAGE,
    sqlite3.SQLITE_CANTOPEN: _STORAGE,
    sqlite3.SQLITE_PERM: _STORAGE,
    sqlite3.SQLITE_CONSTRAINT: (DataError, "two rows of a cell have the same key: {error}"),
}
_DAMAGED = (CheckpointError, "is not {what}, or is damaged: {error}")


class Database:
    """An open SQLite file; made by :func:`connected`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self.connection = connection

    def rows(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Return all rows that a query finds."""
        with explained(self.path):
            return self.connection.execute(query, values).fetchall()

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Commit what the block writes, or nothing of it."""
        with explained(self.path):
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("ROLLBACK")
                raise


@contextmanager
def connected(
    path: Path, what: str = "a results file", *, of_one_thread: bool = True
) -> Generator[sqlite3.Connection]:
    """Open ``path`` with write-ahead logging and synchronous FULL; transactions are explicit.

    At the end, the log is folded into the file.

    Args:
        path: The file; its folder is created if missing.
        what: What the file should be, for the message about one that is something else.
        of_one_thread: Refuse other threads; otherwise the caller lets one in at a time.
    """
    with explained(path, what):
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(
            path,
            timeout=_SECONDS_TO_WAIT,
            isolation_level=None,
            check_same_thread=of_one_thread,
        )
    with closing(connection):
        with explained(path, what):
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        yield connection


@contextmanager
def explained(path: Path, what: str = "a results file") -> Generator[None]:
    """Turn errors of SQLite and of the disk into ours."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        kind, meaning = _MEANINGS.get(code, _DAMAGED)
        raise kind(f"{path}: {meaning.format(error=error, what=what)}") from error
    except UnicodeDecodeError as error:  # what SQLite says may quote the damaged text of a table
        kind, meaning = _DAMAGED
        raise kind(f"{path}: {meaning.format(error=error, what=what)}") from error
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from error
