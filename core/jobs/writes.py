"""The few statements that every change of a job's state is made of. Call them inside a transaction."""

from __future__ import annotations

import json
import sqlite3
import time

from core.jobs.events import Event
from core.jobs.records import FINAL_STATES


def now_ms() -> int:
    """Milliseconds since the epoch."""
    return time.time_ns() // 1_000_000


def leave_running(
    conn: sqlite3.Connection, job_id: int, state: str, kind: str | None = None, message: str | None = None
) -> None:
    now = now_ms()
    conn.execute(
        "UPDATE jobs SET state = ?, error_kind = ?, error = ?, claim_token = NULL, worker_id = NULL,"
        " lease_until = NULL, cancel_requested = 0, finished_at = ?, updated_at = ? WHERE id = ?",
        (state, kind, message, now if state in FINAL_STATES else None, now, job_id),
    )
    if state != "done":
        # A turn that is being saved stays so where its file may be there: the next attempt looks for it by its hash.
        conn.execute(
            "UPDATE turns SET state = 'pending' WHERE job_id = ?"
            " AND (state = 'running' OR (state = 'saving' AND output_sha256 IS NULL))",
            (job_id,),
        )


def close_attempt(
    conn: sqlite3.Connection,
    token: str,
    outcome: str,
    kind: str | None = None,
    message: str | None = None,
    traceback: str | None = None,
) -> None:
    conn.execute(
        "UPDATE attempts SET finished_at = ?, outcome = ?, error_kind = ?, error = ?, traceback = ?"
        " WHERE claim_token = ?",
        (now_ms(), outcome, kind, message, traceback, token),
    )


def write_event(
    conn: sqlite3.Connection, event: Event, attempt: int | None = None, worker_id: int | None = None
) -> None:
    conn.execute(
        "INSERT INTO events (at, what, job_id, turn, attempt, worker_id, data) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (
            now_ms(),
            event.what,
            event.job_id,
            event.turn,
            attempt,
            worker_id,
            json.dumps(event.data) if event.data else None,
        ),
    )


def write_setting(conn: sqlite3.Connection, key: str, value: str) -> None:
    conn.execute(
        "INSERT INTO settings (key, value, updated_at) VALUES (?, ?, ?)"
        " ON CONFLICT (key) DO UPDATE SET value = excluded.value, updated_at = excluded.updated_at",
        (key, value, now_ms()),
    )


def revive(conn: sqlite3.Connection, job_id: int) -> None:
    """Queue a job again from its first unfinished turn."""
    conn.execute(
        "UPDATE jobs SET state = 'queued', attempt = 0, deaths = 0, error_kind = NULL, error = NULL,"
        " run_after = NULL, finished_at = NULL, updated_at = ? WHERE id = ?",
        (now_ms(), job_id),
    )
    write_event(conn, Event("retried", job_id))
