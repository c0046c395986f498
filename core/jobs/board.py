"""The reads behind a live view of the queue: cheap enough to be repeated twice a second over a hundred thousand jobs.

A view is a list of job numbers in order (`numbers`, one pass over an index) and the rows that are on show (`rows`).
Progress that is stored twice a second is read for those rows alone.
"""

from __future__ import annotations

import json
import re
import sqlite3
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, get_args

from core.jobs.control import paused
from core.jobs.database import path_from_db, snapshot
from core.jobs.records import FINAL_STATES, STATES, counts
from core.jobs.workers import LiveWorker, live_workers

Sort = Literal["queue", "number", "name", "state", "priority"]
SORTS: tuple[Sort, ...] = get_args(Sort)
LOOK_BACK = 5_000
"""Events that are searched for finished turns when a view opens: a night's worth."""

_ORDER = ("running", "queued", "failed", "scheduled", "held", "dead", "done", "cancelled")
# Each state by an index that holds the numbers in this very order, so that nothing is sorted.
_IN_STATE = {
    "queued": "SELECT id FROM jobs INDEXED BY jobs_waiting WHERE state = 'queued' ORDER BY priority DESC, id",
    "failed": "SELECT id FROM jobs WHERE state = 'failed' ORDER BY run_after, id",
    "scheduled": "SELECT id FROM jobs WHERE state = 'scheduled' ORDER BY run_after, id",
} | {
    state: f"SELECT id FROM jobs INDEXED BY jobs_state WHERE state = '{state}'"
    f" ORDER BY id {'DESC' if state in FINAL_STATES else 'ASC'}"
    for state in ("running", "held", "dead", "done", "cancelled")
}


@dataclass(frozen=True)
class View:
    """Which jobs are on show, and how they are sorted. `state` None shows all; `text` is part of a name, of a reason,
    or a job's number."""

    state: str | None = None
    text: str = ""
    sort: Sort = "queue"
    reverse: bool = False


@dataclass(frozen=True)
class Row:
    """A job on show. `turn` is the one at work or next; `ms` the median of its steps so far, else of the last one
    done; `steps_left` of all its turns; `saving`: all is computed, and the last of it on its way to the disk."""

    id: int
    name: str
    state: str
    priority: int
    created_at: int
    finished_at: int | None
    run_after: int | None
    error: str | None
    cancelling: bool
    turns: int
    turns_done: int
    turn: int
    step: int
    steps: int
    ms: float | None
    steps_left: int
    saving: bool


@dataclass(frozen=True)
class Running:
    """The job that a worker is at work on: one a worker, the one it computes where it is still saving another."""

    worker_id: int
    device: str
    row: Row
    prompt: str
    step_ms: tuple[float, ...]


@dataclass(frozen=True)
class TurnDone:
    """A turn that a worker finished: `seconds` of the worker's time, without saving."""

    at: int
    worker_id: int
    steps: int
    seconds: float
    step_ms: tuple[float, ...]


@dataclass(frozen=True)
class Glance:
    """What the queue is doing. `event`: the number of the last event, by which the next glance tells what is new."""

    counts: dict[str, int]
    paused: str | None
    workers: list[LiveWorker]
    running: list[Running]
    event: int
    turns_done: list[TurnDone]
    jobs_done: list[int]
    """When jobs were done, in ms."""


def numbers(conn: sqlite3.Connection, view: View) -> array[int]:
    """The numbers of a view's jobs, in order."""
    if view.sort == "queue" and not view.text:
        queries = [_IN_STATE[state] for state in (_ORDER if view.state is None else (view.state,))]
        found = array("q")
        for sql in queries:
            found.extend(_first_column(conn, sql))
        return found[::-1] if view.reverse else found
    where: list[str] = []
    values: list[object] = []
    if view.state is not None:
        where.append("state = ?")
        values.append(view.state)
    if view.text:
        like = "%" + "".join("\\" + c if c in "%_\\" else c for c in view.text) + "%"
        where.append("(name LIKE ? ESCAPE '\\' OR error LIKE ? ESCAPE '\\' OR id = ?)")
        number = view.text.removeprefix("#")
        values += [like, like, int(number) if re.fullmatch("[1-9][0-9]{0,17}", number) else -1]
    filtered = f"WHERE {' AND '.join(where)}" if where else ""
    rank = "CASE state " + " ".join(f"WHEN '{state}' THEN {i}" for i, state in enumerate(_ORDER)) + " END"
    down = "DESC" if view.reverse else "ASC"
    order = {
        "queue": f"{rank} {down}, priority {'ASC' if view.reverse else 'DESC'}, id {down}",
        "number": f"id {'ASC' if view.reverse else 'DESC'}",
        "name": f"name COLLATE NOCASE {down}, id",
        "state": f"{rank} {down}, id",
        "priority": f"priority {'ASC' if view.reverse else 'DESC'}, id",
    }[view.sort]
    return array("q", _first_column(conn, f"SELECT id FROM jobs {filtered} ORDER BY {order}", values))


def _first_column(conn: sqlite3.Connection, sql: str, values: Sequence[object] = ()) -> list[int]:
    # One text for all of them: SQLite makes it without the interpreter's lock, and in a third of the time.
    found: list[int] = json.loads(conn.execute(f"SELECT json_group_array(id) FROM ({sql})", values).fetchone()[0])
    return found


def rows(conn: sqlite3.Connection, ids: Sequence[int]) -> dict[int, Row]:
    """Jobs by number; those that are gone are missing."""
    given = json.dumps(list(ids))
    turns: dict[int, list[sqlite3.Row]] = {}
    for turn in conn.execute(
        "SELECT job_id, turn, state, step, steps, step_ms FROM turns"
        " WHERE job_id IN (SELECT value FROM json_each(?)) ORDER BY job_id, turn",
        (given,),
    ):
        turns.setdefault(turn["job_id"], []).append(turn)
    jobs = conn.execute("SELECT * FROM jobs WHERE id IN (SELECT value FROM json_each(?))", (given,))
    return {job["id"]: _row(job, turns.get(job["id"], [])) for job in jobs}


def _row(job: sqlite3.Row, turns: Sequence[sqlite3.Row]) -> Row:
    left = [turn for turn in turns if turn["state"] != "done"]
    # One turn may be on its way to the disk while the next one is computed: that is the one at work.
    current = next((t for state in ("running", "saving") for t in left if t["state"] == state), None)
    current = current or (left[0] if left else turns[-1] if turns else None)
    timed = current if current is not None and current["step_ms"] else None
    timed = timed or next((turn for turn in reversed(turns) if turn["step_ms"]), None)
    at_work = current is not None and current["state"] != "pending"
    return Row(
        id=job["id"],
        name=path_from_db(job["name"]),
        state=job["state"],
        priority=job["priority"],
        created_at=job["created_at"],
        finished_at=job["finished_at"],
        run_after=job["run_after"],
        error=job["error"],
        cancelling=bool(job["cancel_requested"]),
        turns=len(turns),
        turns_done=len(turns) - len(left),
        turn=current["turn"] if current is not None else 0,
        step=current["step"] if current is not None and at_work else 0,
        steps=current["steps"] if current is not None else 0,
        ms=median(json.loads(timed["step_ms"])) if timed is not None and timed["step_ms"] != "[]" else None,
        steps_left=sum(t["steps"] - (t["step"] if t["state"] != "pending" else 0) for t in left),
        saving=job["state"] == "running" and all(t["state"] == "saving" for t in left),
    )


def ahead(conn: sqlite3.Connection, waiting: Iterable[Row]) -> dict[int, int]:
    """How many queued jobs will be claimed before each of these queued ones."""
    found: dict[int, int] = {}
    before: Row | None = None
    for row in sorted(waiting, key=lambda row: (-row.priority, row.id)):
        if before is None:
            count = _between(conn, row.priority, -1, row.id) + _over(conn, row.priority)
        elif before.priority == row.priority:  # from one to the next on show: a step or two along the index
            count = found[before.id] + _between(conn, row.priority, before.id - 1, row.id)
        else:
            count = _between(conn, row.priority, -1, row.id) + _over(conn, row.priority)
        found[row.id], before = count, row
    return found


def _between(conn: sqlite3.Connection, priority: int, after: int, before: int) -> int:
    sql = (
        "SELECT count(*) FROM jobs INDEXED BY jobs_waiting"
        " WHERE state = 'queued' AND priority = ? AND id > ? AND id < ?"
    )
    return int(conn.execute(sql, (priority, after, before)).fetchone()[0])


def _over(conn: sqlite3.Connection, priority: int) -> int:
    sql = "SELECT count(*) FROM jobs INDEXED BY jobs_waiting WHERE state = 'queued' AND priority > ?"
    return int(conn.execute(sql, (priority,)).fetchone()[0])


def steps_left(conn: sqlite3.Connection) -> int:
    """Steps of all jobs that wait or run. Reads every one of them: 0.1 s for a hundred thousand."""
    row = conn.execute(
        "SELECT sum(t.steps - CASE t.state WHEN 'pending' THEN 0 ELSE t.step END) FROM jobs j"
        " JOIN turns t ON t.job_id = j.id"
        " WHERE j.state IN ('queued', 'running', 'scheduled', 'failed') AND t.state <> 'done'"
    ).fetchone()
    return int(row[0] or 0)


def glance(conn: sqlite3.Connection, after: int | None = None) -> Glance:
    """What the queue is doing now, and what was finished since the event `after` (None: lately)."""
    with snapshot(conn):
        last = int(conn.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0])
        since = max(after or 0, last - LOOK_BACK)
        done = conn.execute(
            "SELECT e.at, e.worker_id, t.steps, t.seconds, t.step_ms FROM events e JOIN turns t USING (job_id, turn)"
            " WHERE e.id > ? AND e.what = 'turn_done' AND t.state = 'done' AND t.seconds IS NOT NULL"
            " AND e.worker_id IS NOT NULL ORDER BY e.id",
            (since,),
        ).fetchall()
        jobs = conn.execute("SELECT at FROM events WHERE id > ? AND what = 'done' ORDER BY id", (since,)).fetchall()
        return Glance(
            counts=counts(conn),
            paused=paused(conn),
            workers=live_workers(conn),
            running=_running(conn),
            event=last,
            turns_done=[
                TurnDone(row["at"], row["worker_id"], row["steps"], row["seconds"], tuple(json.loads(row["step_ms"])))
                for row in done
            ],
            jobs_done=[row["at"] for row in jobs],
        )


def _running(conn: sqlite3.Connection) -> list[Running]:
    at_work = conn.execute(
        "SELECT j.id, j.worker_id, w.device FROM jobs j INDEXED BY jobs_running JOIN workers w ON w.id = j.worker_id"
        " WHERE j.state = 'running' ORDER BY w.device, w.id"
    ).fetchall()
    if not at_work:
        return []
    found = rows(conn, [job["id"] for job in at_work])
    running = []
    for job in at_work:
        row = found[job["id"]]
        if row.saving and any(o["worker_id"] == job["worker_id"] and not found[o["id"]].saving for o in at_work):
            continue  # its worker is at the next one
        turn = conn.execute(
            "SELECT prompt, step_ms, state FROM turns WHERE job_id = ? AND turn = ?", (row.id, row.turn)
        ).fetchone()
        times = json.loads(turn["step_ms"] or "[]") if turn is not None and turn["state"] != "pending" else []
        prompt = turn["prompt"] if turn is not None else ""
        running.append(Running(job["worker_id"], job["device"], row, prompt, tuple(times)))
    return running


assert set(_ORDER) == set(STATES)
