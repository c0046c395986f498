"""Adding a script's pictures to the queue: one job a picture, each edit once."""

from __future__ import annotations

import hashlib
import json
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.edit import images, outputs
from core.edit.models import ModelSpec
from core.inputs import FoundInput
from core.jobs.database import path_from_db, path_to_db, transaction
from core.jobs.events import Event
from core.jobs.writes import now_ms, revive, write_event
from core.script import Script

SEED_BITS = 63


@dataclass(frozen=True)
class NewTurn:
    turn: int
    from_turn: int
    prompt: str
    seed: int
    steps: int
    guidance: float


@dataclass(frozen=True)
class NewJob:
    """A picture about to be queued. `key`: what makes two jobs the same edit."""

    key: str
    name: str
    input_path: str
    input_sha256: str | None
    turns: tuple[NewTurn, ...]


@dataclass(frozen=True)
class Added:
    """What adding came to. A job is `new`, `again` (dead, cancelled or its files gone: queued anew), `waiting`
    (in the queue already) or `done` (made before, its files still there)."""

    batch_id: int
    jobs: dict[int, str]

    def count(self, *kinds: str) -> int:
        return sum(kind in kinds for kind in self.jobs.values())


def plan(
    script: Script,
    found: Sequence[FoundInput],
    spec: ModelSpec,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[NewJob]:
    """One job a picture, seeds and all. Reads every picture once, to know it again by its hash.

    A script for one picture uses its seed as it stands; over several pictures each one's is derived from the
    script's seed and the picture's name, so that it does not depend on what else lies in the folder.
    """
    base = script.seed if script.seed is not None else secrets.randbits(SEED_BITS)
    settings = _settings(script, spec)
    jobs = []
    for index, item in enumerate(found):
        sha256 = images.sha256(item.path)
        seed = base if len(found) == 1 else _derive(base, item.name)
        identity = {**settings, "input": str(item.path), "name": item.name, "sha256": sha256}
        jobs.append(
            NewJob(
                key=_digest(identity),
                name=item.name,
                input_path=str(item.path),
                input_sha256=sha256,
                turns=tuple(_turns(script, spec, seed)),
            )
        )
        on_progress(index + 1)
    return jobs


def add(
    conn: sqlite3.Connection,
    script: Script,
    spec: ModelSpec,
    jobs: Sequence[NewJob],
    *,
    again: bool = False,
    run_after: int | None = None,
    priority: int = 0,
) -> Added:
    """Queue jobs, all of them or none. A job that is here already is not added twice: it serves this batch too.

    run_after: the earliest time to start new jobs, in ms since the epoch.
    """
    now = now_ms()
    with transaction(conn):
        batch_id = conn.execute(
            "INSERT INTO batches (created_at, script_path, script, output_folder) VALUES (?, ?, ?, ?)",
            (now, None, json.dumps(script.dump()), path_to_db(script.output_folder)),
        ).lastrowid
        assert batch_id is not None
        added: dict[int, str] = {}
        for job in jobs:
            if again:
                conn.execute("UPDATE jobs SET key = NULL WHERE key = ? AND state = 'done'", (job.key,))
            known = conn.execute("SELECT id, state FROM jobs WHERE key = ?", (job.key,)).fetchone()
            if known is None:
                added[_insert(conn, script, spec, job, now, run_after, priority)] = "new"
            else:
                added[known["id"]] = _meet(conn, known["id"], known["state"])
        conn.executemany(
            "INSERT OR IGNORE INTO batch_jobs (batch_id, job_id) VALUES (?, ?)",
            [(batch_id, job_id) for job_id in added],
        )
    return Added(batch_id, added)


def _meet(conn: sqlite3.Connection, job_id: int, state: str) -> str:
    """A job that was added before is asked for again."""
    if state in ("dead", "cancelled") or (state == "done" and not _files_stand(conn, job_id)):
        revive(conn, job_id)
        return "again"
    return "done" if state == "done" else "waiting"


def _files_stand(conn: sqlite3.Connection, job_id: int) -> bool:
    rows = conn.execute(
        "SELECT output_path, output_bytes FROM turns WHERE job_id = ? AND added_at IS NULL", (job_id,)
    )
    for row in rows:
        try:
            if Path(path_from_db(row["output_path"])).stat().st_size != row["output_bytes"]:
                return False
        except OSError:
            return False
    return True


def _insert(
    conn: sqlite3.Connection,
    script: Script,
    spec: ModelSpec,
    job: NewJob,
    now: int,
    run_after: int | None,
    priority: int,
) -> int:
    folder = Path(script.output_folder)
    paths = outputs.output_paths(folder, script.output_name, job.name, len(job.turns), _taken(conn))
    job_id = conn.execute(
        "INSERT INTO jobs (key, name, input_path, input_sha256, model, precision, runtime, output_size,"
        " output_folder, output_path, state, run_after, priority, created_at, updated_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            job.key,
            path_to_db(job.name),
            path_to_db(job.input_path),
            job.input_sha256,
            spec.name,
            script.precision,
            script.runtime,
            script.output_size,
            path_to_db(folder),
            path_to_db(paths[-1]),
            "scheduled" if run_after else "queued",
            run_after,
            priority,
            now,
            now,
        ),
    ).lastrowid
    assert job_id is not None
    conn.executemany(
        "INSERT INTO turns (job_id, turn, from_turn, prompt, seed, steps, guidance, output_path)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (job_id, t.turn, t.from_turn, t.prompt, t.seed, t.steps, t.guidance, path_to_db(path))
            for t, path in zip(job.turns, paths, strict=True)
        ],
    )
    write_event(conn, Event("added", job_id))
    return job_id


def _taken(conn: sqlite3.Connection) -> Callable[[Path], bool]:
    """Whether a result's name is spoken for: a file has it, or a job that may still write it."""

    def taken(path: Path) -> bool:
        if path.is_symlink() or path.exists():
            return True
        row = conn.execute(
            # Over turns, whose paths have an index: over jobs, every added picture would read them all.
            "SELECT 1 FROM turns t JOIN jobs j ON j.id = t.job_id"
            " WHERE t.output_path = ? AND j.state NOT IN ('dead', 'cancelled')",
            (path_to_db(path),),
        ).fetchone()
        return row is not None

    return taken


def _turns(script: Script, spec: ModelSpec, seed: int) -> Iterable[NewTurn]:
    for number, turn in enumerate(script.turns, start=1):
        yield NewTurn(
            turn=number,
            from_turn=turn.from_turn,
            prompt=turn.prompt,
            seed=turn.seed if turn.seed is not None else (seed + number - 1) % 2**SEED_BITS,
            steps=turn.steps or script.steps or spec.steps,
            guidance=_first(turn.guidance, script.guidance, spec.guidance),
        )


def _settings(script: Script, spec: ModelSpec) -> dict[str, Any]:
    """What, beside the picture, decides the result. The seed as written: none means any."""
    return {
        "model": spec.name,
        "precision": script.precision,
        "runtime": script.runtime,
        "output": [str(script.output_folder), script.output_name, script.output_size],
        "seed": script.seed,
        "turns": [
            [t.from_turn, t.prompt, t.seed, t.steps or script.steps or spec.steps,
             _first(t.guidance, script.guidance, spec.guidance)]
            for t in script.turns
        ],
    }  # fmt: skip


def _first(*values: float | None) -> float:
    return next(v for v in values if v is not None)


def _derive(seed: int, name: str) -> int:
    text = f"{seed}/{name}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> (64 - SEED_BITS)


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
