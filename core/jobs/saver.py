"""Results on their way to the disk while the next turn is computed: one at a time, in the order they were made.

A turn is done when its file has its name and the queue says so, in this order, and a job when all its turns are; what
goes wrong is kept for the worker, who settles it as if it had happened in the turn. A worker that is killed loses the
turn it was computing and the one that was being saved.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.edit import outputs
from core.edit.source import Result
from core.jobs import claims, turn_states
from core.jobs.claims import Claim
from core.jobs.failpoints import failpoint

Tell = Callable[..., None]


@dataclass(eq=False)
class Held:
    """A job that this worker has, until the queue knows how it ended."""

    claim: Claim
    seconds: float = 0.0
    """Of the worker's time that it took."""
    error: BaseException | None = None
    """What its results could not be saved for."""
    pending: int = 0
    """What the saver has still to do for it."""


@dataclass
class Place:
    """Where a result goes; once it is saved, where it is: a name that was taken is left to its owner."""

    path: Path


@dataclass(eq=False)
class Save:
    """One turn's result, with all that the queue is to know of it."""

    held: Held
    turn: int
    place: Place
    result: Result
    metadata: Mapping[str, Any]
    step_ms: Sequence[float]
    seconds: float
    """Of the worker's time, without the saving."""
    peak_bytes: int
    facts: Mapping[str, Any]
    """For those who listen."""
    digest: Future[str] = field(default_factory=Future)

    def run(self, conn: sqlite3.Connection, tell: Tell) -> None:
        """Encode, write and publish it. The turn is `saving` from here on, and done at the end."""
        claim = self.held.claim
        turn_states.begin_saving(conn, claim, self.turn, self.step_ms)
        data = outputs.encode(self.result.whole(), self.place.path.suffix, self.metadata)
        self.digest.set_result(hashlib.sha256(data).hexdigest())
        require_place(claim, self.place.path)
        self.place.path = self._publish(conn, data)
        turn_states.finish_turn(conn, claim, self.turn)
        tell(
            "turn_done", claim, self.turn, output=str(self.place.path), seconds=self.seconds,
            step_ms=list(self.step_ms), peak_bytes=self.peak_bytes, reused=False, **self.facts,
        )  # fmt: skip

    def _publish(self, conn: sqlite3.Connection, data: bytes) -> Path:
        """Give the result its name, whole or not at all."""
        path = self.place.path
        while True:
            part = outputs.write_part(data, path, self.held.claim.token)
            try:
                turn_states.stage_turn(
                    conn, self.held.claim, self.turn, output_path=str(path), sha256=self.digest.result(),
                    size=len(data), step_ms=self.step_ms, seconds=self.seconds, peak_bytes=self.peak_bytes,
                )  # fmt: skip
                failpoint("before_rename")
                outputs.publish(part, path)
                failpoint("after_rename")
                return path
            except FileExistsError:
                path = outputs.free_name(path, os.path.lexists)
            finally:
                part.unlink(missing_ok=True)


def require_place(claim: Claim, path: Path) -> None:
    """A link that came into the output folder since the job was added leads no result out of it."""
    outputs.require_inside(Path(claim.job.output_folder), path)


@dataclass(eq=False)
class _End:
    """A job that has nothing left to compute: the last thing the saver does for it."""

    held: Held

    def run(self, conn: sqlite3.Connection, tell: Tell) -> bool:
        """False where a turn was asked for meanwhile: the job goes on."""
        failpoint("before_commit_done")
        if not claims.finish_job(conn, self.held.claim):
            return False
        failpoint("after_commit")
        tell("done", self.held.claim, seconds=self.held.seconds)
        return True


class Saver:
    """The thread that saves, and what is to be settled about jobs it had to do with."""

    def __init__(self, conn: sqlite3.Connection, tell: Tell) -> None:
        self._conn, self._tell = conn, tell
        self._changed = threading.Condition()
        self._tasks: deque[Save | _End] = deque()
        self._at_work: Save | _End | None = None
        self._closed = False
        self._failed: list[Held] = []
        self._reopened: list[Held] = []
        self._thread = threading.Thread(target=self._run, name="saver", daemon=True)
        self._thread.start()

    def make_room(self) -> None:
        """Wait until no result waits or is being saved: no more than one is ever held in memory beside the next."""
        with self._changed:
            self._changed.wait_for(lambda: not any(isinstance(task, Save) for task in (*self._tasks, self._at_work)))

    def save(self, save: Save) -> None:
        self._put(save)

    def finish(self, held: Held) -> None:
        """End a job after what is left to save of it."""
        self._put(_End(held))

    def wait(self, held: Held | None = None) -> None:
        """Until nothing is left to do, for one job or for all."""
        with self._changed:
            if held is None:
                self._changed.wait_for(lambda: not self._tasks and self._at_work is None)
            else:
                self._changed.wait_for(lambda: not held.pending)

    def make_place(self) -> None:
        """Wait until one job at most has something left to do here."""
        with self._changed:
            self._changed.wait_for(lambda: len({task.held for task in (*self._tasks, self._at_work) if task}) < 2)

    @property
    def quiet(self) -> bool:
        """Whether nothing is left to do, and nothing to be settled."""
        with self._changed:
            return not (self._tasks or self._at_work or self._failed or self._reopened)

    def take_failed(self) -> list[Held]:
        """Jobs whose results could not be saved, each once."""
        with self._changed:
            failed, self._failed = self._failed, []
        return failed

    def keep_failed(self, held: Held) -> None:
        """It is to be settled later."""
        with self._changed:
            self._failed.append(held)

    def forget(self, held: Held) -> None:
        """It has been settled."""
        with self._changed:
            self._failed = [each for each in self._failed if each is not held]

    def take_reopened(self) -> Held | None:
        """A job that goes on because somebody asked for a turn while it was being saved."""
        with self._changed:
            return self._reopened.pop(0) if self._reopened else None

    def close(self) -> None:
        """End after what is left to do."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _put(self, task: Save | _End) -> None:
        with self._changed:
            task.held.pending += 1
            self._tasks.append(task)
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._tasks or self._closed)
                if not self._tasks:
                    break
                task = self._at_work = self._tasks.popleft()
            error, goes_on = task.held.error, False
            if error is None:
                try:
                    goes_on = task.run(self._conn, self._tell) is False
                except BaseException as raised:  # whoever computes settles it
                    error = raised
            if error is not None and isinstance(task, Save) and not task.digest.done():
                task.digest.set_exception(error)
            with self._changed:
                if error is not None and task.held.error is None:
                    task.held.error = error
                    self._failed.append(task.held)
                if goes_on:
                    self._reopened.append(task.held)
                task.held.pending -= 1
                self._at_work = None
                self._changed.notify_all()
            del task  # its picture
        self._conn.close()
