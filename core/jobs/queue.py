"""Adding a script's pictures to the queue: one job a picture, each edit once."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from core.edit import images, outputs
from core.edit.models import ModelSpec
from core.inputs import FoundInput
from core.jobs.database import path_from_db, path_to_db, transaction
from core.jobs.writes import now_ms, revive
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
    context_refresh: int = 1


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
    now, file = now_ms(), script.file
    with transaction(conn):
        batch_id = conn.execute(
            "INSERT INTO batches (created_at, script_path, script, output_folder) VALUES (?, ?, ?, ?)",
            (now, file and path_to_db(file), json.dumps(script.dump()), path_to_db(script.output_folder)),
        ).lastrowid
        assert batch_id is not None
        if again:
            conn.executemany(
                "UPDATE jobs SET key = NULL WHERE key = ? AND state = 'done'", [(job.key,) for job in jobs]
            )
        known = {
            row["key"]: row
            for row in _find(conn, "SELECT id, key, state FROM jobs WHERE key", [job.key for job in jobs])
        }
        new = list({job.key: job for job in jobs if job.key not in known}.values())
        ids = _insert(conn, script, spec, new, now, run_after, priority)
        added: dict[int, str] = {}
        for job in jobs:
            if job.key in ids:
                added[ids[job.key]] = "new"
            else:
                row = known[job.key]
                added[row["id"]] = _meet(conn, row["id"], row["state"])
        conn.executemany(
            "INSERT OR IGNORE INTO batch_jobs (batch_id, job_id) VALUES (?, ?)",
            [(batch_id, job_id) for job_id in added],
        )
    return Added(batch_id, added)


def _find(conn: sqlite3.Connection, select: str, values: Sequence[Any]) -> Iterator[sqlite3.Row]:
    """Rows whose last named column has one of the values: many at a time, each by its index."""
    for start in range(0, len(values), 500):
        some = values[start : start + 500]
        yield from conn.execute(f"{select} IN ({', '.join('?' * len(some))})", some)


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
    jobs: Sequence[NewJob],
    now: int,
    run_after: int | None,
    priority: int,
) -> dict[str, int]:
    """Write new jobs with their turns; returns each key's id. Rows go in by the thousand, not one by one."""
    first = conn.execute("SELECT coalesce(max(id), 0) + 1 FROM jobs").fetchone()[0]
    folder = Path(script.output_folder)
    state = "scheduled" if run_after else "queued"
    of_jobs, of_turns = [], []
    for job_id, (job, paths) in enumerate(zip(jobs, _places(conn, script, jobs), strict=True), start=first):
        places = [path_to_db(path) for path in paths]
        of_jobs.append(
            (job_id, job.key, path_to_db(job.name), path_to_db(job.input_path), job.input_sha256, places[-1])
        )
        of_turns += [
            (job_id, t.turn, t.from_turn, t.prompt, t.seed, t.steps, t.guidance, t.context_refresh, place)
            for t, place in zip(job.turns, places, strict=True)
        ]
    same = (
        *(spec.name, script.precision, script.runtime, script.output_size, path_to_db(folder)),
        *(state, run_after, priority, now, now),
    )
    conn.executemany(
        "INSERT INTO jobs (id, key, name, input_path, input_sha256, output_path, model, precision, runtime,"
        " output_size, output_folder, state, run_after, priority, created_at, updated_at)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        ((*row, *same) for row in of_jobs),
    )
    conn.executemany(
        "INSERT INTO turns (job_id, turn, from_turn, prompt, seed, steps, guidance, context_refresh, output_path)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        of_turns,
    )
    conn.executemany(
        "INSERT INTO events (at, what, job_id) VALUES (?, 'added', ?)", ((now, row[0]) for row in of_jobs)
    )
    return {row[1]: row[0] for row in of_jobs}


def _places(conn: sqlite3.Connection, script: Script, jobs: Sequence[NewJob]) -> Iterator[list[Path]]:
    """Where each job's results go: names that no file has, no job that may still write it, and none of these."""
    folder, pattern, realpath = Path(script.output_folder), script.output_name, cache(os.path.realpath)
    finals = [outputs.final_path(folder, pattern, job.name, realpath) for job in jobs]
    wanted = {path_to_db(p) for final, job in zip(finals, jobs, strict=True) for p in _turn_paths(final, job)}
    # Over turns, whose paths have an index: over jobs, every added picture would read them all.
    select = (
        "SELECT t.output_path FROM turns t JOIN jobs j ON j.id = t.job_id"
        " WHERE j.state NOT IN ('dead', 'cancelled') AND t.output_path"
    )
    spoken_for = {row["output_path"] for row in _find(conn, select, list(wanted))}

    def taken(path: Path) -> bool:
        place = path_to_db(path)
        if place in spoken_for or os.path.lexists(path):
            return True
        return place not in wanted and next(_find(conn, select, [place]), None) is not None

    for final, job in zip(finals, jobs, strict=True):
        paths = outputs.free_paths(final, len(job.turns), taken)
        spoken_for.update(map(path_to_db, paths))
        yield paths


def _turn_paths(final: Path, job: NewJob) -> list[Path]:
    return outputs.turn_paths(final, len(job.turns))


def _turns(script: Script, spec: ModelSpec, seed: int) -> Iterable[NewTurn]:
    for number, turn in enumerate(script.turns, start=1):
        yield NewTurn(
            turn=number,
            from_turn=turn.from_turn,
            prompt=turn.prompt,
            seed=turn.seed if turn.seed is not None else (seed + number - 1) % 2**SEED_BITS,
            steps=turn.steps or script.steps or spec.steps,
            guidance=_first(turn.guidance, script.guidance, spec.guidance),
            context_refresh=script.refresh_of(turn),
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
             _first(t.guidance, script.guidance, spec.guidance), *_unless_exact(script.refresh_of(t))]
            for t in script.turns
        ],
    }  # fmt: skip


def _unless_exact(refresh: int) -> list[int]:
    """Exact edits keep the key they had before there was anything else."""
    return [refresh] if refresh > 1 else []


def _first(*values: float | None) -> float:
    return next(v for v in values if v is not None)


def _derive(seed: int, name: str) -> int:
    text = f"{seed}/{name}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> (64 - SEED_BITS)


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
