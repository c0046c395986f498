"""Jobs and turns as `jobs.db` keeps them, and the reads behind `list`, `show` and `status`."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import UsageError
from core.jobs.database import path_from_db

FINAL_STATES = ("done", "dead", "cancelled")
STATES = ("queued", "running", "scheduled", "held", "failed", "done", "dead", "cancelled")


@dataclass(frozen=True)
class Turn:
    """A turn of a job as stored. `from_turn` 0 is the input; `state` is pending, running, saving or done.

    `review` is accepted, rejected or None; `added_at` is None for the script's own turns, and the time of asking for
    a redo (of the turn `redo_of`) or a branch. `peak_bytes`: the most memory of its job until its end, of the GPU
    where it ran on one.
    """

    turn: int
    from_turn: int
    prompt: str
    seed: int
    steps: int
    guidance: float
    context_refresh: int
    state: str
    step_ms: tuple[float, ...]
    seconds: float | None
    output_path: str
    output_sha256: str | None
    output_bytes: int | None
    attempt: int | None
    precision: str | None
    runtime: str | None
    peak_bytes: int | None
    review: str | None
    reviewed_at: int | None
    added_at: int | None
    redo_of: int | None


@dataclass(frozen=True)
class Job:
    """A job as stored, without its turns."""

    id: int
    name: str
    input_path: str
    input_sha256: str | None
    model: str
    precision: str
    runtime: str
    output_size: str
    output_folder: str
    output_path: str
    state: str
    priority: int
    attempt: int
    max_attempts: int
    deaths: int
    error_kind: str | None
    error: str | None
    created_at: int
    started_at: int | None
    finished_at: int | None


def get_job(conn: sqlite3.Connection, job_id: int) -> Job:
    state_of(conn, job_id)
    return job_from_row(conn.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone())


def get_turns(conn: sqlite3.Connection, job_id: int) -> list[Turn]:
    rows = conn.execute("SELECT * FROM turns WHERE job_id = ? ORDER BY turn", (job_id,))
    return [_turn(row) for row in rows]


def left(conn: sqlite3.Connection, batch_id: int | None = None) -> dict[str, int]:
    """The jobs (of one batch) that have not ended, by state; only states that there are."""
    numbers = counts(conn)
    if batch_id is not None:
        rows = conn.execute(
            "SELECT j.state, count(*) AS jobs FROM batch_jobs b JOIN jobs j ON j.id = b.job_id WHERE b.batch_id = ?"
            " GROUP BY j.state",
            (batch_id,),
        )
        numbers = {row["state"]: row["jobs"] for row in rows}
    return {state: numbers[state] for state in STATES if state not in FINAL_STATES and numbers.get(state)}


def unfinished(conn: sqlite3.Connection, batch_id: int) -> int:
    """How many jobs of a batch may still change without a person: not final, not held."""
    row = conn.execute(
        "SELECT count(*) FROM batch_jobs b JOIN jobs j ON j.id = b.job_id WHERE b.batch_id = ?"
        " AND j.state IN ('queued', 'running', 'scheduled', 'failed')",
        (batch_id,),
    ).fetchone()
    return int(row[0])


def list_jobs(
    conn: sqlite3.Connection, *, states: Sequence[str] = (), limit: int = 50, before: int | None = None
) -> list[Job]:
    """The newest jobs first, at most `limit`, with ids under `before`."""
    where, values = ["id < ?"], [before if before is not None else 2**62]  # type: list[str], list[Any]
    if states:
        where.append(f"state IN ({', '.join('?' * len(states))})")
        values.extend(states)
    rows = conn.execute(f"SELECT * FROM jobs WHERE {' AND '.join(where)} ORDER BY id DESC LIMIT ?", (*values, limit))
    return [job_from_row(row) for row in rows]


def counts(conn: sqlite3.Connection) -> dict[str, int]:
    """Jobs by state, every state named. Kept by triggers, so it costs the same for any number of jobs."""
    stored = {row["state"]: row["jobs"] for row in conn.execute("SELECT * FROM counts")}
    return {state: stored.get(state, 0) for state in STATES}


def story(conn: sqlite3.Connection, job_id: int) -> list[dict[str, Any]]:
    """A job's events in order, each with its time in ms, the word, its data and the worker whose it is."""
    rows = conn.execute(
        "SELECT e.*, w.host, w.pid, w.device FROM events e LEFT JOIN workers w ON w.id = e.worker_id"
        " WHERE e.job_id = ? ORDER BY e.id",
        (job_id,),
    ).fetchall()
    return [
        {key: row[key] for key in ("at", "what", "turn", "attempt")}
        | {"data": json.loads(row["data"]) if row["data"] else {}}
        | {"worker": {key: row[key] for key in ("host", "pid", "device")} if row["pid"] else None}
        for row in rows
    ]


def job_from_row(row: sqlite3.Row) -> Job:
    values = {name: row[name] for name in Job.__dataclass_fields__}
    for name in ("name", "input_path", "output_folder", "output_path"):
        values[name] = path_from_db(values[name])
    return Job(**values)


def _turn(row: sqlite3.Row) -> Turn:
    values = {name: row[name] for name in Turn.__dataclass_fields__}
    values["output_path"] = path_from_db(values["output_path"])
    values["step_ms"] = tuple(json.loads(row["step_ms"] or "[]"))
    return Turn(**values)


def state_of(conn: sqlite3.Connection, job_id: int) -> str:
    row = conn.execute("SELECT state FROM jobs WHERE id = ?", (job_id,)).fetchone()
    if row is None:
        raise UsageError(f"no job {job_id} here; `kontext-tui list` shows what there is")
    return str(row["state"])
