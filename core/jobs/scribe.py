"""What is written down while a turn is computed: progress, saved steps and previews, by a thread of its own.

Of each kind the newest waits and takes the place of an older one: a slow disk makes notes rarer and steps no longer.
The claim that every write names keeps a late one from doing harm (`core.jobs.claims`).
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable

from core.jobs.claims import Claim

Note = Callable[[sqlite3.Connection], None]


class Scribe:
    """Notes about the turn at work, written in the order of their kinds' first mention."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._conn = conn
        self._changed = threading.Condition()
        self._waiting: dict[str, tuple[Claim, Note]] = {}
        self._busy = self._closed = False
        self._error: tuple[Claim, BaseException] | None = None
        self._thread = threading.Thread(target=self._run, name="scribe", daemon=True)
        self._thread.start()

    def put(self, kind: str, claim: Claim, note: Note) -> None:
        """Write this as soon as may be, in place of a note of its kind that still waits."""
        with self._changed:
            self._waiting[kind] = claim, note
            self._changed.notify_all()

    def check(self, claim: Claim) -> None:
        """Raise what went wrong with a note about this claim; of an earlier one nothing is said any more."""
        with self._changed:
            found, self._error = self._error, None
        if found is not None and found[0] is claim:
            raise found[1]

    def flush(self, claim: Claim) -> None:
        """Wait until all is written; raises as `check` does."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting and not self._busy)
        self.check(claim)

    def drop(self) -> None:
        """Leave out what is not begun: it is about a turn that has ended."""
        with self._changed:
            self._waiting.clear()
            self._changed.notify_all()

    def close(self) -> None:
        with self._changed:
            self._waiting.clear()
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    break
                claim, note = self._waiting.pop(next(iter(self._waiting)))
                self._busy = True
            try:
                note(self._conn)
            except BaseException as error:  # whoever computes hears of it before the next step
                with self._changed:
                    self._error = claim, error
        self._conn.close()
