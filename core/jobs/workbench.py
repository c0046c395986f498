"""What a worker works with: its queue, its models, and the threads that read ahead, note and save meanwhile."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from core import __version__
from core.edit.studio import Studio
from core.errors import KontextError
from core.jobs import checkpoints, claims, previews
from core.jobs.claims import Claim
from core.jobs.database import connect
from core.jobs.events import Event, Listener, ignore
from core.jobs.prefetch import Prefetcher
from core.jobs.previews import Easel
from core.jobs.saver import Saver
from core.jobs.scribe import Scribe


class Stopped(KontextError):
    """The worker was told to stop; the job goes back into the queue."""

    kind = "stopped"


@dataclass
class Worker:
    """A worker at work on one queue. `stop` is asked between steps; listener: called from several threads, one at a
    time."""

    conn: sqlite3.Connection
    studio: Studio
    listener: Listener = ignore
    stop: Callable[[], bool] = lambda: False
    checkpoint_seconds: float = checkpoints.SECONDS
    id: int = field(init=False)
    easel: Easel = field(init=False)
    saver: Saver = field(init=False)
    scribe: Scribe = field(init=False)
    prefetcher: Prefetcher = field(init=False)
    batch_id: int | None = field(init=False, default=None)
    leaving: BaseException | None = field(init=False, default=None)
    """Why this worker ends, where that has nothing to do with the job at hand."""
    last_step: float | None = field(init=False, default=None)
    """When the last denoising step ended (`time.perf_counter`); None after a rest."""

    def __post_init__(self) -> None:
        self.id = claims.register_worker(self.conn, self.studio.device, __version__)
        self.easel = previews.easel_for(self.conn, self.id)
        self._telling = threading.Lock()

    def open(self) -> None:
        """Start the threads; each has a connection of its own to the queue."""
        self.saver = Saver(self._connect(), self.tell)
        self.scribe = Scribe(self._connect())
        self.prefetcher = Prefetcher(self._connect())

    def close(self) -> None:
        """End the threads, after what is left to save."""
        self.prefetcher.close()
        self.scribe.close()
        self.saver.close()
        self.easel.clear()

    def tell(self, what: str, claim: Claim | None = None, turn: int | None = None, **data: object) -> None:
        with self._telling:
            self.listener(Event(what, claim.job.id if claim else None, turn, dict(data)))

    def since_last_step(self, ms: float) -> float | None:
        """ms from the last step of the turn before to the beginning of the step that ends now and took `ms`."""
        return None if self.last_step is None else (time.perf_counter() - self.last_step) * 1000 - ms

    def _connect(self) -> sqlite3.Connection:
        conn = connect(Path(self.conn.execute("PRAGMA database_list").fetchone()[2]), create=False)
        conn.on_busy = getattr(self.conn, "on_busy", None)
        return conn
