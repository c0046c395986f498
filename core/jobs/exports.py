"""Accepted results, copied to a folder with the record of their review beside them."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from core.edit import images, outputs
from core.errors import OutputError
from core.jobs.database import transaction
from core.jobs.events import Event
from core.jobs.provenance import lineage, unless_exact
from core.jobs.records import Job, Turn, get_job, get_turns
from core.jobs.results import Pick, Scope, results
from core.jobs.writes import now_ms, write_event

RECORD = "review.jsonl"
"""What was exported and who it comes from, a line of JSON a picture, in the folder they were exported to."""


@dataclass(frozen=True)
class Exported:
    """What became of one accepted result: copied, there already, or not the file that was accepted any more."""

    pick: Pick
    outcome: Literal["copied", "there", "missing", "changed"]
    source: str
    path: str | None = None


def accepted(conn: sqlite3.Connection, *, every_turn: bool = False) -> Iterator[tuple[Job, list[Turn], Turn]]:
    """The accepted results with their jobs: of a chain of accepted turns the last one, or every one."""
    picks = results(conn, Scope("accepted"))
    for job_id in dict.fromkeys(pick.job_id for pick in picks):
        job, turns = get_job(conn, job_id), get_turns(conn, job_id)
        chosen = [turn for turn in turns if turn.state == "done" and turn.review == "accepted"]
        steps = {step.turn for turn in chosen for step in lineage(turns, turn)[:-1]}
        for turn in chosen:
            if every_turn or turn.turn not in steps:
                yield job, turns, turn


def export(
    conn: sqlite3.Connection,
    folder: Path,
    *,
    every_turn: bool = False,
    on_done: Callable[[Exported], None] = lambda exported: None,
) -> list[Exported]:
    """Copy the accepted results below `folder`, named as they are, in the subfolders they are in.

    A file is copied only where it still is what was accepted, by its hash, and never over another one. Exporting
    again copies what is new. Raises OutputError where the folder cannot be written.
    """
    outputs.check_folder(folder)
    done = []
    for job, turns, turn in list(accepted(conn, every_turn=every_turn)):
        done.append(_export(conn, folder, job, turns, turn))
        on_done(done[-1])
    return done


def _export(conn: sqlite3.Connection, folder: Path, job: Job, turns: Sequence[Turn], turn: Turn) -> Exported:
    pick, source = Pick(job.id, turn.turn), Path(turn.output_path)
    try:
        with images.open_regular(source) as file:
            data = file.read()
    except OSError:
        return Exported(pick, "missing", turn.output_path)
    if hashlib.sha256(data).hexdigest() != turn.output_sha256:
        return Exported(pick, "changed", turn.output_path)
    target = folder / _below(source, Path(job.output_folder))
    outputs.check_folder(target.parent)
    while os.path.lexists(target) and not _same(target, turn):
        target = outputs.free_name(target, lambda path: os.path.lexists(path) and not _same(path, turn))
    if os.path.lexists(target):
        return Exported(pick, "there", turn.output_path, str(target))
    part = outputs.write_part(data, target, secrets.token_hex(8))
    try:
        outputs.publish(part, target)
    except FileExistsError:  # taken a moment ago
        part.unlink(missing_ok=True)
        return _export(conn, folder, job, turns, turn)
    _append(folder / RECORD, _record(folder, target, job, list(turns), turn))
    with transaction(conn):
        write_event(conn, Event("exported", job.id, turn.turn, {"to": str(target)}))
    return Exported(pick, "copied", turn.output_path, str(target))


def _below(path: Path, folder: Path) -> Path:
    return path.relative_to(folder) if path.is_relative_to(folder) else Path(path.name)


def _same(path: Path, turn: Turn) -> bool:
    return outputs.matches(path, turn.output_sha256, turn.output_bytes)


def _record(folder: Path, target: Path, job: Job, turns: list[Turn], turn: Turn) -> dict[str, Any]:
    return {
        "file": str(target.relative_to(folder)),
        "sha256": turn.output_sha256,
        "job": job.id,
        "turn": turn.turn,
        "review": turn.review,
        "reviewed_at": turn.reviewed_at,
        "exported_at": now_ms(),
        "input": {"name": job.name, "sha256": job.input_sha256},
        "model": job.model,
        "precision": turn.precision,
        "turns": [
            {"turn": t.turn, "prompt": t.prompt, "seed": t.seed, "steps": t.steps, "guidance": t.guidance}
            | unless_exact(t)
            for t in lineage(turns, turn)
        ],
    }


def _append(path: Path, record: dict[str, Any]) -> None:
    """Add a line to the record, whole: one write at the end of the file, synced."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
        try:
            os.write(descriptor, (json.dumps(record) + "\n").encode())
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        why = "a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise OutputError(f"{images.shown(str(path))}: the record cannot be written ({why})") from error
