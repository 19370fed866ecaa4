"""Claims: which process works on which cell, so that several can share one folder.

A claim holds for a lease, which a thread of its worker renews. It lapses when the lease runs out,
or as soon as its process on this machine has died.
"""

import multiprocessing
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress

from personality_vector.errors import OutputExistsError
from personality_vector.files.sqlite import Database
from personality_vector.manifest import version_of_tool
from personality_vector.study.database import connected

LEASE = 60.0
"""Seconds for which a claim holds unless it is renewed."""

_HOST = socket.gethostname()


class Claims:
    """The claims of one worker on the keys of a database."""

    def __init__(self, database: Database, lease: float) -> None:
        self.worker = f"{version_of_tool()}/{uuid.uuid4().hex}"
        self.lease = lease
        self._database = database

    @contextmanager
    def held(self, wanted: Callable[[], Iterable[str]]) -> Generator[list[str]]:
        """Claim the free keys of ``wanted()`` and renew the claims during the ``with`` block.

        Raises:
            OutputExistsError: A worker of another version of this package works there.
        """
        insert = "INSERT INTO claims VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
        database = self._database.connection
        with self._database.transaction():
            self._drop_lapsed()
            self._require_same_version()
            row = (self.worker, _HOST, os.getpid(), time.time() + self.lease)
            taken = [key for key in wanted() if database.execute(insert, (key, *row)).rowcount]
        done = threading.Event()
        thread = threading.Thread(target=self._renew, args=(done,), daemon=True)
        thread.start()
        try:
            yield taken
        finally:
            done.set()
            thread.join()
            with self._database.transaction():
                self.drop(taken)

    def is_lost(self, key: str) -> bool:
        """Return whether another worker has taken over ``key``."""
        return bool(
            self._database.rows(
                "SELECT 1 FROM claims WHERE key = ? AND worker != ?", (key, self.worker)
            )
        )

    def drop(self, keys: Sequence[str]) -> None:
        """Give up claims of this worker, inside a transaction."""
        self._database.connection.executemany(
            "DELETE FROM claims WHERE key = ? AND worker = ?", [(key, self.worker) for key in keys]
        )

    def of_others(self) -> bool:
        """Return whether a claim of another worker holds."""
        with self._database.transaction():
            self._drop_lapsed()
            return bool(
                self._database.rows("SELECT 1 FROM claims WHERE worker != ?", (self.worker,))
            )

    def _renew(self, done: threading.Event) -> None:
        path = self._database.path
        while not done.wait(self.lease / 3):
            # A connection belongs to the thread that made it.
            with suppress(Exception), connected(path) as own, Database(path, own).transaction():
                own.execute(
                    "UPDATE claims SET expires = ? WHERE worker = ?",
                    (time.time() + self.lease, self.worker),
                )

    def _require_same_version(self) -> None:
        """Refuse to work beside another version, which may measure the same thing differently."""
        own = self.worker.partition("/")[0]
        for (worker,) in self._database.rows("SELECT worker FROM claims"):
            other, is_named, _ = worker.partition("/")
            if other != own:
                raise OutputExistsError(
                    f"{self._database.path.parent}: is being worked on by "
                    f"{f'version {other}' if is_named else 'an earlier version'} of "
                    f"personality-vector, and this is {own}; wait until it has ended, or choose "
                    "another --out"
                )

    def _drop_lapsed(self) -> None:
        database = self._database.connection
        multiprocessing.active_children()  # a child that died has a number until it is joined
        rows = database.execute("SELECT DISTINCT host, pid, worker FROM claims").fetchall()
        dead = [(worker,) for host, pid, worker in rows if host == _HOST and not _is_alive(pid)]
        database.executemany("DELETE FROM claims WHERE worker = ?", dead)
        database.execute("DELETE FROM claims WHERE expires < ?", (time.time(),))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)  # it is alive and belongs to another user
    return True
