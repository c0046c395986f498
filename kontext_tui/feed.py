"""The app's way to the queue: one thread that reads, one that writes, each with a connection of its own.

The screen never waits for the database. `Changed` tells a screen that somebody, another process or this one, has
committed something: reload what is shown.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from textual.message import Message

from core.errors import DatabaseError
from core.jobs.database import connect

P = ParamSpec("P")
T = TypeVar("T")
Query = Callable[Concatenate[sqlite3.Connection, P], T]
POLL_SECONDS = 0.25
"""How often the database is asked whether anything changed: 6 us each."""
CALM_SECONDS = 1.0
"""How often screens are told at most; workers store their progress twice a second."""
HANDS_OFF_SECONDS = 10.0
"""So long after the last key they are told half as often: who only looks on needs no more, and the machine less."""


class Changed(Message):
    """Something in the queue is no longer as it was read."""


class Feed:
    """Reads and writes of one queue, in threads."""

    def __init__(self, database: Path) -> None:
        self._reader, self._writer = _Lane(database, "reader"), _Lane(database, "writer")
        self._version: int | None = None

    async def read(self, query: Query[P, T], *args: P.args, **named: P.kwargs) -> T:
        return await self._reader.run(query, *args, **named)

    async def write(self, command: Query[P, T], *args: P.args, **named: P.kwargs) -> T:
        return await self._writer.run(command, *args, **named)

    async def changed(self) -> bool:
        """Whether anyone has committed anything since the last call."""
        version = await self._reader.run(_data_version)
        before, self._version = self._version, version
        return version != before

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


class _Lane:
    """One thread with one connection. Whatever SQLite refuses comes back as a DatabaseError."""

    def __init__(self, database: Path, name: str) -> None:
        self.database = database
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"queue-{name}")
        self._conn: sqlite3.Connection | None = None

    async def run(self, query: Callable[..., T], *args: Any, **named: Any) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, lambda: self._call(query, args, named))

    def _call(self, query: Callable[..., T], args: Any, named: Any) -> T:
        try:
            if self._conn is None:
                self._conn = connect(self.database, create=False)
                # Copying the log into the file is the workers' business: a viewer that does it in the middle of a
                # night can only be in their way.
                self._conn.execute("PRAGMA wal_autocheckpoint = 0")
            return query(self._conn, *args, **named)
        except sqlite3.Error as error:
            raise DatabaseError(f"the queue's database refuses: {error}") from error

    def close(self) -> None:
        if self._conn is not None:
            with suppress(sqlite3.Error):
                self._conn.interrupt()  # a long read ends here, not in a minute
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self._conn is not None:
            with suppress(sqlite3.Error):
                self._conn.close()


def _data_version(conn: sqlite3.Connection) -> int:
    return int(conn.execute("PRAGMA data_version").fetchone()[0])
