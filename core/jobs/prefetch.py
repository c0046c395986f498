"""The next jobs' pictures, read, decoded and brought to the model's size while the current one is denoised.

A guess by the order of claims: what it gets wrong is read when it is claimed, as everything would be without it. A
picture that has changed since, or whose file cannot be read, is read again by whoever claims it, who also says so.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from core.edit import source
from core.edit.geometry import Size
from core.edit.source import Source
from core.jobs import claims

MAX_PIXELS = 60_000_000
"""Larger ones are left to the claim: decoded beside a result that is being saved they would take gigabytes."""
MAX_AHEAD = 4
"""Jobs that are looked at: as many as there are workers, since any of them may take the next one."""
MAX_KEPT = 8
"""Pictures; at the model's size each takes 4 MB, and as much as it has pixels where it is transparent."""


@dataclass(frozen=True)
class Ahead:
    """What to look for: jobs of one batch or any, and the sizes of the model that is loaded."""

    batch_id: int | None
    model: str
    sizes: Sequence[Size]


class Prefetcher:
    """A thread that reads ahead, and the few pictures it has read. conn: its own, as that of the other threads."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._conn = conn
        self._changed = threading.Condition()
        self._ahead: Ahead | None = None
        self._reading: Path | None = None
        self._kept: dict[Path, tuple[object, Source]] = {}
        self._closed = False
        self.hits = 0
        threading.Thread(target=self._run, name="prefetch", daemon=True).start()

    def look(self, ahead: Ahead) -> None:
        """Read what is likely to be claimed next, now."""
        with self._changed:
            self._ahead = ahead
            self._changed.notify_all()

    def take(self, path: Path, model: str) -> Source:
        """The picture, from memory where it is the very file that was read. Raises InputError.

        One that was read for another model is read again: the size of a picture's own is not kept.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._reading != path)
            known, found = self._kept.pop(path, (None, None))
        if found is not None and known == _stamp(path, model):
            self.hits += 1
            return found
        return source.load(path)

    def close(self) -> None:
        """End after the picture that is being read; nobody waits for it."""
        with self._changed:
            self._closed = True
            self._kept.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ahead or self._closed)
                if self._closed:
                    break
                ahead, self._ahead = self._ahead, None
            assert ahead is not None
            with suppress(sqlite3.Error):  # a guess, and no more: the claim comes by the same fault and says it
                self._read(ahead)
        self._conn.close()

    def _read(self, ahead: Ahead) -> None:
        wanted = claims.next_pictures(self._conn, ahead.model, batch_id=ahead.batch_id, limit=MAX_AHEAD)[:MAX_KEPT]
        with self._changed:
            for path in self._kept.keys() - set(wanted):
                del self._kept[path]
        for path in wanted:
            stamp = _stamp(path, ahead.model)
            with self._changed:
                if self._closed or self._ahead is not None:
                    return  # the world has moved on
                if stamp is None or self._kept.get(path, (None,))[0] == stamp:
                    continue
                self._reading = path
            found = None
            with suppress(Exception):
                found = source.load(path, max_pixels=MAX_PIXELS).fit(ahead.sizes, hurry=False)
            with self._changed:
                self._reading = None
                if found is not None and not self._closed:
                    self._kept[path] = stamp, found
                self._changed.notify_all()


def _stamp(path: Path, model: str) -> object:
    """What must be the same for a picture to be the one that was read; None where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116
    except (OSError, ValueError):
        return None
    return model, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns
