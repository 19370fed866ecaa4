"""Claims: which process works on which cell, so that several share the work of one folder.

A claim holds for a lease, which a thread of its worker renews. It is void once the lease has run
out, or at once where its process on this machine is dead.
"""

import contextlib
import os
import socket
import sqlite3
import threading
import time
import uuid
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

from personality_vector.study.store.sqlite import connect, transaction

LEASE = 60.0
"""Seconds for which a claim holds unless it is renewed."""

_HOST = socket.gethostname()


class Claims:
    """The claims of one worker on the file ``path``."""

    def __init__(self, path: Path, connection: sqlite3.Connection, lease: float = LEASE) -> None:
        self.path = path
        self.worker = uuid.uuid4().hex
        self.lease = lease
        self._connection = connection

    def take(self, keys: Iterable[str]) -> list[str]:
        """Claim those of ``keys`` that nobody has, inside a transaction; return them."""
        database = self._connection
        self._forget_void()
        row = (self.worker, _HOST, os.getpid(), time.time() + self.lease)
        taken = []
        for key in keys:
            done = database.execute(
                "INSERT INTO claims VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", (key, *row)
            )
            if done.rowcount:
                taken.append(key)
        return taken

    def is_lost(self, key: str) -> bool:
        """Return whether another worker has taken over ``key``."""
        query = "SELECT worker FROM claims WHERE key = ?"
        row = self._connection.execute(query, (key,)).fetchone()
        return row is not None and row[0] != self.worker

    def drop(self, keys: Sequence[str]) -> None:
        """Give up claims of this worker, inside a transaction."""
        rows = [(key, self.worker) for key in keys]
        self._connection.executemany("DELETE FROM claims WHERE key = ? AND worker = ?", rows)

    def others(self) -> int:
        """Return how many claims of other workers hold."""
        with transaction(self._connection, self.path):
            self._forget_void()
            query = "SELECT COUNT(*) FROM claims WHERE worker != ?"
            return int(self._connection.execute(query, (self.worker,)).fetchone()[0])

    @contextlib.contextmanager
    def renewed(self) -> Generator[None]:
        """Renew all claims of this worker until the block ends."""
        done = threading.Event()
        thread = threading.Thread(target=self._renew, args=(done,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def _renew(self, done: threading.Event) -> None:
        connection = None
        while not done.wait(self.lease / 3):
            # A connection belongs to the thread that made it.
            connection = connection or connect(self.path)
            with contextlib.suppress(Exception), transaction(connection, self.path):
                connection.execute(
                    "UPDATE claims SET expires = ? WHERE worker = ?",
                    (time.time() + self.lease, self.worker),
                )
        if connection is not None:
            connection.close()

    def _forget_void(self) -> None:
        database = self._connection
        rows = database.execute("SELECT DISTINCT host, pid, worker FROM claims").fetchall()
        dead = [worker for host, pid, worker in rows if host == _HOST and not _is_alive(pid)]
        database.executemany("DELETE FROM claims WHERE worker = ?", [(worker,) for worker in dead])
        database.execute("DELETE FROM claims WHERE expires < ?", (time.time(),))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
