"""Queues for the tests of the app: filled through the one door there is, with steps as a worker stores them."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from core.edit.models import find_spec
from core.jobs import claims, queue, turn_states
from core.script import Script

TURNS = (
    queue.NewTurn(1, 0, "Make it a sunset", 7, 28, 2.5),
    queue.NewTurn(2, 1, "Remove all the people in this image", 8, 28, 2.5),
    queue.NewTurn(3, 1, "Make it a watercolour painting", 9, 20, 2.5),
)
HOSTILE = (
    "red\x1b[31m.jpg", "osc\x1b]52;c;aGk=\x07.jpg", "c1\x9b31m.jpg", "bidi\u202egpj.exe",
    "[@click=app.quit]click[/].jpg", "[bold red]markup[/].jpg", "[/foo]", "sur\udcffrogate.jpg", "nul\x00l.jpg",
    "two\nlines.jpg", "$accent.jpg", "写真 🌅.jpg", "zero\u200bwidth.jpg", "l" * 4000 + ".jpg",
)  # fmt: skip


def add(
    conn: sqlite3.Connection, folder: Path, names: list[str], turns: tuple[queue.NewTurn, ...] = TURNS[:1]
) -> None:
    """Queue a job a name; the pictures need not exist."""
    script = Script.model_validate(
        {"input": "photos", "output": str(folder / "edited"), "model": "kontext-tiny", "turns": [turns[0].prompt]}
    )
    jobs = [
        queue.NewJob(f"key-{name!r}", name, f"/photos/{index}.jpg", None, turns) for index, name in enumerate(names)
    ]
    queue.add(conn, script, find_spec("kontext-tiny"), jobs)


def work(
    conn: sqlite3.Connection, worker: int, *, step_ms: float = 430.0, stop_at: int | None = None
) -> claims.Claim:
    """Claim the next job and end it; stop_at: leave it at work after so many steps of its first turn."""
    claim = claims.claim(conn, worker)
    assert claim is not None
    for turn, steps in conn.execute(
        "SELECT turn, steps FROM turns WHERE job_id = ? ORDER BY turn", (claim.job.id,)
    ).fetchall():
        turn_states.start_turn(conn, claim, turn, precision="fp8", runtime="torch")
        if stop_at is not None:
            turn_states.beat(conn, claim, turn, [step_ms] * stop_at)
            return claim
        turn_states.stage_turn(
            conn, claim, turn, output_path=f"/edited/{claim.job.id}-{turn}.png", sha256="0" * 64, size=1,
            step_ms=[step_ms] * steps, seconds=step_ms * steps / 1000, peak_bytes=1,
        )  # fmt: skip
        turn_states.finish_turn(conn, claim, turn)
    claims.finish_job(conn, claim)
    return claim
