"""What a person does to jobs that are in the queue, and to the queue itself. All of it while workers run."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from core.errors import UsageError
from core.jobs.database import copy_to, transaction
from core.jobs.events import Event
from core.jobs.records import FINAL_STATES, state_of
from core.jobs.writes import leave_running, now_ms, revive, write_event, write_setting

WAITING_STATES = ("queued", "scheduled", "failed")
DAY_MS = 24 * 3600 * 1000


@dataclass(frozen=True)
class Room:
    """Free space that is waited for: so many bytes on the disk of a folder."""

    folder: str
    bytes: int


Change = Callable[[int, str], None]
"""What to do to one job, given its number and state; called inside a transaction."""


def cancel(conn: sqlite3.Connection, job_ids: Iterable[int]) -> dict[int, str]:
    """Cancel jobs; returns the state each had. A running one ends between two steps; a final one stays."""

    def change(job_id: int, state: str) -> None:
        if state == "running":
            conn.execute("UPDATE jobs SET cancel_requested = 1 WHERE id = ?", (job_id,))
        elif state not in FINAL_STATES:
            leave_running(conn, job_id, "cancelled")
            write_event(conn, Event("cancelled", job_id))

    return _each(conn, job_ids, change)


def retry(conn: sqlite3.Connection, job_ids: Iterable[int]) -> dict[int, str]:
    """Queue dead, failed and cancelled jobs again; returns the state each had. Turns that are done stay done."""

    def change(job_id: int, state: str) -> None:
        if state in ("dead", "cancelled", "failed"):
            revive(conn, job_id)

    return _each(conn, job_ids, change)


def hold(conn: sqlite3.Connection, job_ids: Iterable[int]) -> dict[int, str]:
    """Keep waiting jobs from being claimed until they are released; returns the state each had."""

    def change(job_id: int, state: str) -> None:
        if state in WAITING_STATES:
            conn.execute(
                "UPDATE jobs SET state = 'held', run_after = NULL, updated_at = ? WHERE id = ?", (now_ms(), job_id)
            )
            write_event(conn, Event("held", job_id))

    return _each(conn, job_ids, change)


def unhold(conn: sqlite3.Connection, job_ids: Iterable[int]) -> dict[int, str]:
    """Let held jobs wait for a worker again; returns the state each had."""

    def change(job_id: int, state: str) -> None:
        if state == "held":
            conn.execute("UPDATE jobs SET state = 'queued', updated_at = ? WHERE id = ?", (now_ms(), job_id))
            write_event(conn, Event("unheld", job_id))

    return _each(conn, job_ids, change)


def prioritise(conn: sqlite3.Connection, job_ids: Iterable[int], priority: int) -> dict[int, str]:
    """Set the priority of jobs: higher ones are claimed first, 0 is what jobs are added with."""

    def change(job_id: int, state: str) -> None:
        conn.execute("UPDATE jobs SET priority = ?, updated_at = ? WHERE id = ?", (priority, now_ms(), job_id))
        write_event(conn, Event("prioritised", job_id, data={"priority": priority}))

    return _each(conn, job_ids, change)


def _each(conn: sqlite3.Connection, job_ids: Iterable[int], change: Change) -> dict[int, str]:
    """Change jobs, all or none of them; returns the state each had. Raises UsageError for a number there is not."""
    before: dict[int, str] = {}
    with transaction(conn):
        for job_id in job_ids:
            before[job_id] = state_of(conn, job_id)
            change(job_id, before[job_id])
    return before


def pause(conn: sqlite3.Connection, reason: str, room: Room | None = None) -> None:
    """Let no worker claim anything until `resume`; what runs goes on to its end. Survives restarts.

    room: what the queue waits for, and then goes on by itself (`resume_when_room`).
    """
    with transaction(conn):
        if room is not None:
            write_setting(conn, "room", json.dumps(asdict(room)))
        write_setting(conn, "paused", reason)
        write_event(conn, Event("paused", data={"reason": reason}))


def resume(conn: sqlite3.Connection) -> bool:
    """Undo `pause`; whether the queue was paused."""
    with transaction(conn):
        was = conn.execute("DELETE FROM settings WHERE key = 'paused'").rowcount > 0
        conn.execute("DELETE FROM settings WHERE key = 'room'")
        if was:
            write_event(conn, Event("resumed"))
    return was


def paused(conn: sqlite3.Connection) -> str | None:
    """Why the queue is paused, None where it is not."""
    row = conn.execute("SELECT value FROM settings WHERE key = 'paused'").fetchone()
    return row["value"] if row else None


def resume_when_room(conn: sqlite3.Connection) -> bool:
    """Resume a queue that a full disk paused, once there is room again; whether it was."""
    row = conn.execute("SELECT value FROM settings WHERE key = 'room'").fetchone()
    if row is None:
        return False
    room = Room(**json.loads(row["value"]))
    try:
        free = shutil.disk_usage(room.folder).free
    except OSError:
        return False
    return free >= room.bytes and resume(conn)


def prune(conn: sqlite3.Connection, *, days: float, states: Sequence[str] = FINAL_STATES) -> int:
    """Forget jobs that ended more than `days` ago, with their turns and stories; never a file. Returns how many."""
    if not set(states) <= set(FINAL_STATES):
        raise UsageError(f"only jobs that have ended can be pruned: {', '.join(FINAL_STATES)}")
    marks = ", ".join("?" * len(states))
    with transaction(conn):
        deleted = conn.execute(
            f"DELETE FROM jobs WHERE state IN ({marks}) AND finished_at < ?", (*states, now_ms() - int(days * DAY_MS))
        ).rowcount
        conn.execute("DELETE FROM batches WHERE id NOT IN (SELECT batch_id FROM batch_jobs)")
    return deleted


def backup(conn: sqlite3.Connection, target: Path) -> None:
    """A whole copy of a queue that may be at work, through SQLite's backup API; never over an existing file.

    Raises DatabaseError where the queue is damaged: such a copy is no backup, and none is left.
    """
    if os.path.lexists(target):
        raise UsageError(f"{target} is there already; give the backup another name")
    if not os.access(target.absolute().parent, os.W_OK | os.X_OK):
        raise UsageError(f"{target} cannot be written: its folder is not there, or not yours to write in")
    try:
        copy_to(conn, target, whole=True)
    except OSError as error:
        raise UsageError(f"{target} cannot be written: {error.strerror}") from None
