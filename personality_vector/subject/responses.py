"""What servers answered, on disk, and what the requests cost: nothing is asked or paid twice."""

import json
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

from personality_vector.errors import ModelError
from personality_vector.files.reading import parse_json
from personality_vector.files.sqlite import Database, connected
from personality_vector.lab import cache_folder

_FILE, _WHAT = "responses.sqlite", "a file of responses (delete it to ask everything again)"
_TABLES = (
    "responses (key TEXT PRIMARY KEY, content TEXT NOT NULL)",
    # A request is noted before it is sent, with the most that it can cost: one that is cut off by
    # a kill may have been billed.
    "requests (id INTEGER PRIMARY KEY, account TEXT NOT NULL, tokens_in INTEGER NOT NULL, "
    "tokens_out INTEGER NOT NULL)",
)
_PRICED_TOKENS = 1_000_000


@dataclass(frozen=True, slots=True)
class Prices:
    """What tokens cost, and how much may be spent.

    Attributes:
        tokens_in: Price of a million tokens of prompts.
        tokens_out: Price of a million tokens of replies.
        budget: The most that all requests of an account may cost together.
    """

    tokens_in: float = 0.0
    tokens_out: float = 0.0
    budget: float | None = None

    def of(self, tokens_in: int, tokens_out: int) -> float:
        """Return the price of tokens."""
        return (self.tokens_in * tokens_in + self.tokens_out * tokens_out) / _PRICED_TOKENS


class Spent(NamedTuple):
    """Requests of an account that were billed, or may have been, and their tokens."""

    requests: int
    tokens_in: int
    tokens_out: int


class Responses:
    """The file of responses, open for any number of threads; other processes may use it too."""

    def __init__(self, database: Database) -> None:
        self._opened: Database | None = database
        self._change = threading.Condition()
        self._begun = set[int]()

    @classmethod
    @contextmanager
    def open(cls) -> Generator["Responses"]:
        """Open the file in the cache of the user, for a ``with`` block.

        Raises:
            CheckpointError: The file is damaged.
            LockedError: Another process keeps it locked.
            StorageError: The disk is full, read-only or failing.
        """
        path = cache_folder("endpoint") / _FILE
        with connected(path, _WHAT, of_one_thread=False) as connection:
            database = Database(path, connection)
            with database.transaction():
                for table in _TABLES:
                    connection.execute(f"CREATE TABLE IF NOT EXISTS {table}")
            responses = cls(database)
            try:
                yield responses
            finally:
                with responses._change:  # a thread that was left behind finds it closed
                    responses._opened = None

    @property
    def _database(self) -> Database:
        if self._opened is None:
            raise ModelError("nothing is asked any more")
        return self._opened

    def get(self, key: str) -> Any:
        """Return the content that was kept under a key, or ``None``."""
        with self._change:
            found = self._database.rows("SELECT content FROM responses WHERE key = ?", (key,))
        return parse_json(found[0][0]) if found else None

    def begin(self, account: str, most: tuple[int, int], prices: Prices) -> int:
        """Note a request that is about to be sent, and return its number.

        Args:
            account: Who pays.
            most: The most tokens that it can read and write.
            prices: What they cost.

        Raises:
            ModelError: It could cost more than is left of the budget, whatever the requests cost
                that are still on their way.
        """
        with self._change:
            while (number := self._noted(account, most, prices)) is None:
                if not self._begun:
                    spent = self.spent(account)
                    cost, more = prices.of(*spent[1:]), prices.of(*most)
                    raise ModelError(
                        f"the budget of {prices.budget:.6g} is used up: {cost:.6g} is spent "
                        f"(requests: {spent.requests:,}), and the next request may cost up to "
                        f"{more:.6g}; raise budget to have the rest rated, what is done stays"
                    )
                self._change.wait()
            self._begun.add(number)
            return number

    def _noted(self, account: str, most: tuple[int, int], prices: Prices) -> int | None:
        with self._database.transaction():
            if prices.budget is not None:
                _, *spent = self.spent(account)
                if prices.of(*spent) + prices.of(*most) > prices.budget:
                    return None
            made = self._database.connection.execute(
                "INSERT INTO requests VALUES (NULL, ?, ?, ?)", (account, *most)
            )
            return int(made.lastrowid or 0)

    def end(
        self, number: int, tokens: tuple[int, int] | None, keep: tuple[str, Any] | None
    ) -> None:
        """Note the end of a request.

        Args:
            number: Its number.
            tokens: What it read and wrote; ``None`` if that is not known, so that it counts as the
                most.
            keep: A key and the content to keep under it.
        """
        with self._change:
            with self._database.transaction():
                write = self._database.connection.execute
                if tokens is not None:
                    update = "UPDATE requests SET tokens_in = ?, tokens_out = ? WHERE id = ?"
                    write(update, (*tokens, number))
                if keep is not None:
                    content = json.dumps(keep[1], ensure_ascii=False)
                    write("INSERT OR REPLACE INTO responses VALUES (?, ?)", (keep[0], content))
            self._begun.discard(number)
            self._change.notify_all()

    def spent(self, account: str) -> Spent:
        """Return what the requests of an account cost so far."""
        columns = "COUNT(*), COALESCE(SUM(tokens_in), 0), COALESCE(SUM(tokens_out), 0)"
        billed = "account = ? AND tokens_in + tokens_out > 0"
        with self._change:
            rows = self._database.rows(f"SELECT {columns} FROM requests WHERE {billed}", (account,))
        return Spent(*rows[0])
