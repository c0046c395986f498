"""What a worker writes about a turn of a job it has: begun, under way, kept for a restart, being saved, done.

As in `core.jobs.claims`: every write names the claim, and one that comes late changes nothing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence

from core.jobs.claims import LEASE_MS, Claim, StaleClaim, fence
from core.jobs.database import path_to_db, transaction
from core.jobs.events import Event
from core.jobs.process import boot_ms
from core.jobs.writes import now_ms, write_event


def start_turn(
    conn: sqlite3.Connection, claim: Claim, turn: int, *, precision: str, runtime: str, step: int = 0
) -> None:
    """Begin a turn, or go on with it after `step`."""
    with transaction(conn):
        fence(conn, claim)
        conn.execute(
            "UPDATE turns SET state = 'running', step = 0, step_ms = NULL, seconds = NULL, precision = ?,"
            " runtime = ?, output_sha256 = NULL, output_bytes = NULL, attempt = ?, started_at = ?,"
            " finished_at = NULL WHERE job_id = ? AND turn = ?",
            (precision, runtime, claim.job.attempt, now_ms(), claim.job.id, turn),
        )
        data = {"after_step": step} if step else {}
        write_event(conn, Event("turn", claim.job.id, turn, data), claim.job.attempt, claim.worker_id)


def beat(conn: sqlite3.Connection, claim: Claim, turn: int, step_ms: Sequence[float]) -> None:
    """Store the progress inside a turn and renew the worker's leases. Raises Cancelled, StaleClaim.

    One that comes late, when the turn is being saved already, leaves it as it is.
    """
    with transaction(conn):
        fence(conn, claim)
        conn.execute(
            "UPDATE turns SET step = ?, step_ms = ? WHERE job_id = ? AND turn = ? AND state = 'running'",
            (len(step_ms), json.dumps(_rounded(step_ms)), claim.job.id, turn),
        )
        conn.execute(
            "UPDATE jobs SET lease_until = ? WHERE state = 'running' AND worker_id = ?",
            (boot_ms() + LEASE_MS, claim.worker_id),
        )
        conn.execute("UPDATE workers SET heartbeat_at = ? WHERE id = ?", (now_ms(), claim.worker_id))


def save_checkpoint(conn: sqlite3.Connection, claim: Claim, turn: int, step: int, meta: str, state: bytes) -> None:
    """Keep the state inside a turn, in place of an earlier one. One that comes late, when the turn is being saved
    already, is not kept."""
    with transaction(conn):
        fence(conn, claim)
        conn.execute(
            "INSERT OR REPLACE INTO checkpoints (job_id, turn, step, meta, state, saved_at)"
            " SELECT job_id, turn, ?, ?, ?, ? FROM turns WHERE job_id = ? AND turn = ? AND state = 'running'",
            (step, meta, state, now_ms(), claim.job.id, turn),
        )


def load_checkpoint(conn: sqlite3.Connection, job_id: int, turn: int) -> tuple[int, str, bytes] | None:
    """The step, meta and state of an unfinished turn."""
    row = conn.execute(
        "SELECT step, meta, state FROM checkpoints WHERE job_id = ? AND turn = ?", (job_id, turn)
    ).fetchone()
    return (row["step"], row["meta"], row["state"]) if row else None


def begin_saving(conn: sqlite3.Connection, claim: Claim, turn: int, step_ms: Sequence[float]) -> None:
    """All steps of a turn are done and its result is on the way to the disk; its worker may be at the next one."""
    with transaction(conn):
        fence(conn, claim)
        conn.execute(
            "UPDATE turns SET state = 'saving', step = ?, step_ms = ? WHERE job_id = ? AND turn = ?",
            (len(step_ms), json.dumps(_rounded(step_ms)), claim.job.id, turn),
        )


def stage_turn(
    conn: sqlite3.Connection,
    claim: Claim,
    turn: int,
    *,
    output_path: str,
    sha256: str,
    size: int,
    step_ms: Sequence[float],
    seconds: float,
    peak_bytes: int,
) -> None:
    """Announce the file that is about to get its name, so that a worker that dies in between left a trace:
    the next one finds a file with this hash there and adopts it."""
    with transaction(conn):
        fence(conn, claim)
        conn.execute(
            "UPDATE turns SET state = 'saving', step = ?, step_ms = ?, seconds = ?, peak_bytes = ?,"
            " output_path = ?, output_sha256 = ?, output_bytes = ? WHERE job_id = ? AND turn = ?",
            (
                len(step_ms),
                json.dumps(_rounded(step_ms)),
                seconds,
                peak_bytes,
                path_to_db(output_path),
                sha256,
                size,
                claim.job.id,
                turn,
            ),
        )


def finish_turn(conn: sqlite3.Connection, claim: Claim, turn: int) -> None:
    """The staged file has its name: the turn is done and will not be computed again."""
    with transaction(conn):
        fence(conn, claim)
        changed = conn.execute(
            "UPDATE turns SET state = 'done', finished_at = ? WHERE job_id = ? AND turn = ? AND state = 'saving'",
            (now_ms(), claim.job.id, turn),
        ).rowcount
        if changed != 1:
            raise StaleClaim(f"turn {turn} of job {claim.job.id} was not being saved")
        conn.execute("DELETE FROM checkpoints WHERE job_id = ? AND turn = ?", (claim.job.id, turn))
        write_event(conn, Event("turn_done", claim.job.id, turn), claim.job.attempt, claim.worker_id)
        if conn.execute(
            "UPDATE turns SET review = NULL, reviewed_at = NULL, reviewed_sha256 = NULL WHERE job_id = ? AND turn = ?"
            " AND review IS NOT NULL AND reviewed_sha256 IS NOT output_sha256",
            (claim.job.id, turn),
        ).rowcount:
            data = {"reason": "its picture was lost and made again, not to the byte"}
            write_event(conn, Event("unreviewed", claim.job.id, turn, data), claim.job.attempt, claim.worker_id)


def redo_turn(conn: sqlite3.Connection, claim: Claim, turn: int) -> None:
    """Forget a result whose file has gone, so that the turn is computed again."""
    with transaction(conn):
        fence(conn, claim)
        conn.execute(
            "UPDATE turns SET state = 'pending', output_sha256 = NULL, output_bytes = NULL"
            " WHERE job_id = ? AND turn = ?",
            (claim.job.id, turn),
        )


def _rounded(step_ms: Sequence[float]) -> list[float]:
    return [round(ms, 1) for ms in step_ms]
