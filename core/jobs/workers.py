"""Which workers are at work, as anyone who shows the queue may ask."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from core.jobs.process import ProcessId, is_gone, this_process
from core.jobs.writes import now_ms

SILENT_MS = 60_000
"""A worker of another host that has not been heard of for so long is taken for gone: it is told of every 5 s."""
RECENT = 256
"""How many of the newest entries are looked at: killed workers never say that they stopped."""


@dataclass(frozen=True)
class LiveWorker:
    """A worker that runs. `device`: cpu, cuda:0 ...; `job_id`: what it works on, not what it
    is still saving."""

    id: int
    device: str
    host: str
    pid: int
    here: bool
    started_at: int
    job_id: int | None


def live_workers(conn: sqlite3.Connection) -> list[LiveWorker]:
    """Workers that run, by device. One of this host is looked up among its processes, others by their heartbeat."""
    rows = conn.execute(
        "SELECT w.*, (SELECT j.id FROM jobs j INDEXED BY jobs_running WHERE j.state = 'running'"
        " AND j.worker_id = w.id ORDER BY j.updated_at DESC LIMIT 1) AS job_id"
        " FROM workers w WHERE w.stopped_at IS NULL ORDER BY w.id DESC LIMIT ?",
        (RECENT,),
    )
    me, now = this_process(), now_ms()
    found = []
    for row in rows:
        here = row["host"] == me.host
        process = ProcessId(row["host"], row["boot_id"], row["pid"], row["start_ticks"])
        if is_gone(process) or (not here and now - row["heartbeat_at"] > SILENT_MS):
            continue
        found.append(
            LiveWorker(row["id"], row["device"], row["host"], row["pid"], here, row["started_at"], row["job_id"])
        )
    return sorted(found, key=lambda worker: (worker.device, worker.id))


def ask_to_stop(workers: Iterable[LiveWorker]) -> int:
    """Ask workers of this host to end after their step, as a SIGTERM does; returns how many were asked."""
    asked = 0
    for worker in workers:
        if worker.here:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(worker.pid, signal.SIGTERM)
                asked += 1
    return asked
