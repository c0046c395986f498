"""What a worker does to the queue: claim a job and end it; `core.jobs.turn_states` is what it tells of its turns.

Execution is at least once; what is seen is exactly one result a turn. Every write here names the claim token, so a
worker whose job was taken from it changes nothing (`StaleClaim`).
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import KontextError
from core.jobs.database import path_from_db, transaction
from core.jobs.events import Event
from core.jobs.process import ProcessId, boot_ms, is_gone, this_process
from core.jobs.records import Job, job_from_row
from core.jobs.writes import close_attempt, leave_running, now_ms, write_event

LEASE_MS = 30_000
MAX_DEATHS = 2
LOOK_AHEAD = 4096
"""Waiting jobs whose prompts are looked at."""
NEXT_WAITING = (
    # Named, or the planner takes the index on states and sorts all that wait.
    "SELECT id FROM jobs INDEXED BY jobs_waiting WHERE state = 'queued' ORDER BY priority DESC, id LIMIT 1"
)
NEXT_WAITING_OF_BATCH = (
    "SELECT j.id FROM batch_jobs b JOIN jobs j ON j.id = b.job_id"
    " WHERE b.batch_id = :batch AND j.state = 'queued' ORDER BY j.priority DESC, j.id LIMIT 1"
)


class StaleClaim(KontextError):
    """This worker no longer holds the job: it was rescued from it or cancelled. Nothing was written."""

    kind = "stale"


class Cancelled(KontextError):
    """Somebody asked for this job to be cancelled."""

    kind = "cancelled"


@dataclass(frozen=True)
class Claim:
    """A job that this worker holds until it finishes or releases it."""

    job: Job
    token: str
    worker_id: int


def register_worker(conn: sqlite3.Connection, device: str, version: str) -> int:
    """Enter this process as a worker; returns its id."""
    me, now = this_process(), now_ms()
    cursor = conn.execute(
        "INSERT INTO workers (host, boot_id, pid, start_ticks, device, version, started_at, heartbeat_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (me.host, me.boot_id, me.pid, me.start_ticks, device, version, now, now),
    )
    assert cursor.lastrowid is not None
    return cursor.lastrowid


def stop_worker(conn: sqlite3.Connection, worker_id: int) -> None:
    conn.execute("UPDATE workers SET stopped_at = ? WHERE id = ?", (now_ms(), worker_id))


def renew(conn: sqlite3.Connection, worker_ids: Sequence[int]) -> None:
    """Say that these workers live: their leases go on. Called by whoever watches them, every few seconds."""
    marks = ", ".join("?" * len(worker_ids))
    with transaction(conn):
        conn.execute(
            f"UPDATE jobs SET lease_until = ? WHERE state = 'running' AND worker_id IN ({marks})",
            (boot_ms() + LEASE_MS, *worker_ids),
        )
        conn.execute(f"UPDATE workers SET heartbeat_at = ? WHERE id IN ({marks})", (now_ms(), *worker_ids))


def rescue(conn: sqlite3.Connection, *, blame: Mapping[int, str] | None = None) -> list[Event]:
    """Put back every running job whose worker has ended or let its lease run out; returns what became of them:
    `lost`, which wait again, `cancelled` and `dead`.

    blame: workers that died on their own (not with whoever watched them), and of what: killed_worker or timeout. A
    job that two of those died under is dead.
    """
    rows = conn.execute(
        "SELECT j.id AS job, j.lease_until, w.* FROM jobs j JOIN workers w ON w.id = j.worker_id"
        " WHERE j.state = 'running'"
    ).fetchall()
    now = boot_ms()
    lost = {
        row["job"]: row["id"]
        for row in rows
        if is_gone(ProcessId(row["host"], row["boot_id"], row["pid"], row["start_ticks"])) or row["lease_until"] < now
    }
    taken = [_take_back(conn, job_id, worker, (blame or {}).get(worker)) for job_id, worker in lost.items()]
    return [event for event in taken if event is not None]


def _take_back(conn: sqlite3.Connection, job_id: int, worker_id: int, cause: str | None) -> Event | None:
    """Requeue a job that its worker lost; None where somebody was quicker."""
    with transaction(conn):
        row = conn.execute(
            "UPDATE jobs SET deaths = deaths + ? WHERE id = ? AND state = 'running' AND worker_id = ?"
            " RETURNING attempt, claim_token, deaths, cancel_requested",
            (int(cause is not None), job_id, worker_id),
        ).fetchone()
        if row is None:
            return None
        close_attempt(conn, row["claim_token"], "lost", "killed", "its worker process ended")
        write_event(conn, Event("lost", job_id), row["attempt"], worker_id)
        if row["cancel_requested"]:
            leave_running(conn, job_id, "cancelled")
            event = Event("cancelled", job_id)
        elif cause and row["deaths"] >= MAX_DEATHS:
            end = "hung until they were killed" if cause == "timeout" else "died"
            message = f"{row['deaths']} workers {end} while they edited it"
            leave_running(conn, job_id, "dead", cause, message)
            event = Event("dead", job_id, data={"kind": cause, "message": message})
        else:
            leave_running(conn, job_id, "queued")
            return Event("lost", job_id)
        write_event(conn, event)
    return event


# ---------------------------------------------------------------- a worker's writes


def claim(conn: sqlite3.Connection, worker_id: int, *, batch_id: int | None = None) -> Claim | None:
    """Take the next waiting job (of one batch), or None. Highest priority first, then the oldest."""
    now, token = now_ms(), secrets.token_hex(8)
    waiting = NEXT_WAITING if batch_id is None else NEXT_WAITING_OF_BATCH
    with transaction(conn):
        conn.execute(
            "UPDATE jobs SET state = 'queued', run_after = NULL"
            " WHERE state IN ('scheduled', 'failed') AND run_after <= ?",
            (now,),
        )
        row = conn.execute(
            "UPDATE jobs SET state = 'running', attempt = attempt + 1, claim_token = :token,"
            " worker_id = :worker, lease_until = :lease, started_at = coalesce(started_at, :now),"
            f" error_kind = NULL, error = NULL, updated_at = :now WHERE id = ({waiting})"
            " AND NOT EXISTS (SELECT 1 FROM settings WHERE key = 'paused') RETURNING *",
            {"token": token, "worker": worker_id, "lease": boot_ms() + LEASE_MS, "now": now, "batch": batch_id},
        ).fetchone()
        if row is None:
            return None
        conn.execute(
            "INSERT INTO attempts (job_id, attempt, claim_token, worker_id, started_at) VALUES (?, ?, ?, ?, ?)",
            (row["id"], row["attempt"], token, worker_id, now),
        )
        write_event(conn, Event("claimed", row["id"]), row["attempt"], worker_id)
    return Claim(job_from_row(row), token, worker_id)


def next_pictures(conn: sqlite3.Connection, model: str, *, batch_id: int | None, limit: int) -> list[Path]:
    """The files that jobs of this model will ask for first, of those likely to be claimed next (of one batch).

    A guess that changes nothing: any of the workers may take the next job, and the order may change before that.
    """
    paused = "SELECT 1 FROM settings WHERE key = 'paused'"
    workers = "SELECT max(count(DISTINCT worker_id), 1) FROM jobs INDEXED BY jobs_running WHERE state = 'running'"
    waiting = NEXT_WAITING if batch_id is None else NEXT_WAITING_OF_BATCH
    if conn.execute(paused).fetchone():
        return []
    ahead = min(conn.execute(workers).fetchone()[0], limit)
    rows = conn.execute(
        "SELECT j.input_path, (SELECT f.output_path FROM turns f WHERE f.job_id = j.id AND f.state = 'done'"
        " AND f.turn = (SELECT t.from_turn FROM turns t WHERE t.job_id = j.id AND t.state <> 'done'"
        " ORDER BY t.turn LIMIT 1)) AS result"
        f" FROM jobs j WHERE j.model = :model AND j.id IN ({waiting.replace('LIMIT 1', 'LIMIT :ahead')})"
        " ORDER BY j.priority DESC, j.id",
        {"model": model, "batch": batch_id, "ahead": ahead},
    )
    return [Path(path_from_db(path)) for row in rows for path in row if path is not None]


def upcoming_prompts(conn: sqlite3.Connection, model: str, *, batch_id: int | None = None) -> list[str]:
    """Prompts that are not done yet of the next jobs that wait with this model (in one batch), each once, in the
    order of the jobs."""
    batch = "AND id IN (SELECT job_id FROM batch_jobs WHERE batch_id = :batch)" if batch_id is not None else ""
    rows = conn.execute(
        "SELECT t.prompt FROM (SELECT id, row_number() OVER (ORDER BY priority DESC, id) AS place"
        f" FROM jobs INDEXED BY jobs_waiting WHERE state = 'queued' AND model = :model {batch}"
        " ORDER BY place LIMIT :jobs) j JOIN turns t ON t.job_id = j.id WHERE t.state <> 'done'"
        " GROUP BY t.prompt ORDER BY min(j.place), min(t.turn)",
        {"model": model, "batch": batch_id, "jobs": LOOK_AHEAD},
    )
    return [row["prompt"] for row in rows]


def earlier_tokens(conn: sqlite3.Connection, claim: Claim) -> list[str]:
    """The claim tokens of the job's earlier attempts: what they left behind is named after them."""
    rows = conn.execute(
        "SELECT claim_token FROM attempts WHERE job_id = ? AND claim_token <> ?", (claim.job.id, claim.token)
    )
    return [row["claim_token"] for row in rows]


def failures(conn: sqlite3.Connection, claim: Claim) -> int:
    """How many attempts at the job have failed since it was last retried by hand. One that was interrupted, or whose
    worker died, is none: deaths are counted apart."""
    row = conn.execute(
        "SELECT count(*) FROM attempts WHERE job_id = :job AND outcome = 'failed' AND started_at >="
        " (SELECT coalesce(max(at), 0) FROM events WHERE job_id = :job AND what = 'retried')",
        {"job": claim.job.id},
    ).fetchone()
    return int(row[0])


def note(conn: sqlite3.Connection, claim: Claim, text: str) -> None:
    """Add a remark to the job's story, such as what was done to an unusual input."""
    with transaction(conn):
        fence(conn, claim)
        write_event(conn, Event("note", claim.job.id, data={"text": text}), claim.job.attempt, claim.worker_id)


def finish_job(conn: sqlite3.Connection, claim: Claim) -> bool:
    """End a job whose turns are all done; its output is that of the script's last turn.

    False where a turn is left to do: somebody asked for a redo while the job was at work, and it goes on.
    """
    with transaction(conn):
        fence(conn, claim)
        left = "SELECT 1 FROM turns WHERE job_id = ? AND state <> 'done' LIMIT 1"
        if conn.execute(left, (claim.job.id,)).fetchone():
            return False
        conn.execute(
            "UPDATE jobs SET output_path = (SELECT output_path FROM turns WHERE job_id = jobs.id"
            " AND added_at IS NULL ORDER BY turn DESC LIMIT 1) WHERE id = ?",
            (claim.job.id,),
        )
        _end(conn, claim, "done")
    return True


def fail_job(conn: sqlite3.Connection, claim: Claim, kind: str, message: str, traceback: str | None = None) -> None:
    """The job cannot be done: it is dead, with the reason beside it."""
    with transaction(conn):
        fence(conn, claim, cancellable=False)
        _end(conn, claim, "dead", kind, message, traceback)


def retry_later(
    conn: sqlite3.Connection, claim: Claim, kind: str, message: str, traceback: str | None, delay_ms: int
) -> None:
    """The attempt failed and another one may not: the job waits `delay_ms` as `failed`, with the reason beside it."""
    with transaction(conn):
        fence(conn, claim, cancellable=False)
        _end(conn, claim, "failed", kind, message, traceback)
        conn.execute("UPDATE jobs SET run_after = ? WHERE id = ?", (now_ms() + delay_ms, claim.job.id))


def cancel_claimed(conn: sqlite3.Connection, claim: Claim) -> None:
    """End a job whose cancellation was asked for while this worker held it."""
    with transaction(conn):
        fence(conn, claim, cancellable=False)
        _end(conn, claim, "cancelled")


def release(conn: sqlite3.Connection, claim: Claim, reason: str = "") -> None:
    """Put a claimed job back, as a worker does that was told to stop; `reason`: anything else."""
    with transaction(conn):
        fence(conn, claim, cancellable=False)
        close_attempt(conn, claim.token, "released")
        leave_running(conn, claim.job.id, "queued")
        data = {"reason": reason} if reason else {}
        write_event(conn, Event("released", claim.job.id, data=data), claim.job.attempt, claim.worker_id)


def fence(conn: sqlite3.Connection, claim: Claim, *, cancellable: bool = True) -> None:
    """First in every write about a claimed job. Raises StaleClaim where the job was taken from the worker, Cancelled
    where somebody wants it ended."""
    row = conn.execute(
        "SELECT cancel_requested FROM jobs WHERE id = ? AND claim_token = ? AND state = 'running'",
        (claim.job.id, claim.token),
    ).fetchone()
    if row is None:
        raise StaleClaim(f"job {claim.job.id} is no longer held by this worker; its result was dropped")
    if cancellable and row["cancel_requested"]:
        raise Cancelled(f"job {claim.job.id} was cancelled")


def _end(
    conn: sqlite3.Connection,
    claim: Claim,
    state: str,
    kind: str | None = None,
    message: str | None = None,
    traceback: str | None = None,
) -> None:
    close_attempt(conn, claim.token, state, kind, message, traceback)
    leave_running(conn, claim.job.id, state, kind, message)
    data = {"kind": kind, "message": message} if kind else {}
    write_event(conn, Event(state, claim.job.id, data=data), claim.job.attempt, claim.worker_id)
