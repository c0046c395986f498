"""`pause`, `resume`, `cancel`, `retry`, `hold`, `release`, `priority`, `prune`, `backup`: steering the queue.

All of them work while workers run, from any shell.
"""

from __future__ import annotations

import sqlite3
import sys
from pathlib import Path
from typing import Annotated

import typer

from core.errors import ExitCode, UsageError
from kontext_tui.cli import options as opt

WAITING = ("queued", "scheduled", "failed")


def pause(
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Shown with the queue.")] = "by hand", db: opt.Db = None
) -> None:
    """Let no worker take another job; what runs goes on to its end. Survives restarts."""
    from core.jobs import control

    with opt.open_queue(db, create=False) as conn:
        control.pause(conn, reason)
    print("paused; `kontext-tui resume` goes on")


def resume(db: opt.Db = None) -> None:
    """Let workers take jobs again."""
    from core.jobs import control

    with opt.open_queue(db, create=False) as conn:
        was = control.resume(conn)
    print("resumed" if was else "was not paused")


def cancel(
    job: opt.JobIds = None,
    queued: Annotated[bool, typer.Option("--queued", help="Every job that waits.")] = False,
    db: opt.Db = None,
) -> None:
    """Cancel jobs. A running one ends after its step; what is finished stays on disk."""
    from core.jobs import control

    with opt.open_queue(db, create=False) as conn:
        before = control.cancel(conn, _chosen(conn, job, [*WAITING, "held"] if queued else []))
    _tell(before, {"running": "ends after its step"} | dict.fromkeys((*WAITING, "held"), "cancelled"))


def retry(
    job: opt.JobIds = None,
    dead: Annotated[bool, typer.Option("--dead", help="Every dead job.")] = False,
    failed: Annotated[bool, typer.Option("--failed", help="Every failed job that waits for its retry.")] = False,
    cancelled: Annotated[bool, typer.Option("--cancelled", help="Every cancelled job.")] = False,
    db: opt.Db = None,
) -> None:
    """Queue dead, failed or cancelled jobs again; turns that are done are kept."""
    from core.jobs import control

    wanted = {"dead": dead, "failed": failed, "cancelled": cancelled}
    with opt.open_queue(db, create=False) as conn:
        before = control.retry(conn, _chosen(conn, job, [state for state, given in wanted.items() if given]))
    _tell(before, dict.fromkeys(wanted, "queued again"))


def hold(
    job: opt.JobIds = None,
    queued: Annotated[bool, typer.Option("--queued", help="Every job that waits.")] = False,
    db: opt.Db = None,
) -> None:
    """Keep jobs from being taken until they are released."""
    from core.jobs import control

    with opt.open_queue(db, create=False) as conn:
        before = control.hold(conn, _chosen(conn, job, list(WAITING) if queued else []))
    _tell(before, dict.fromkeys(WAITING, "held"))


def release(
    job: opt.JobIds = None,
    held: Annotated[bool, typer.Option("--held", help="Every job that is held.")] = False,
    db: opt.Db = None,
) -> None:
    """Let held jobs be taken again."""
    from core.jobs import control

    with opt.open_queue(db, create=False) as conn:
        before = control.unhold(conn, _chosen(conn, job, ["held"] if held else []))
    _tell(before, {"held": "queued"})


def priority(
    job: Annotated[list[int], typer.Argument(metavar="JOB", help="Job numbers.", show_default=False)],
    number: Annotated[
        int, typer.Option("--to", metavar="N", help="Higher ones are edited first; 0 is usual.", show_default=False)
    ],
    db: opt.Db = None,
) -> None:
    """Move jobs ahead of others, or behind them."""
    from core.jobs import control
    from core.jobs.records import STATES

    with opt.open_queue(db, create=False) as conn:
        before = control.prioritise(conn, job, number)
    _tell(before, dict.fromkeys(STATES, f"priority {number}"))


def prune(
    days: Annotated[float, typer.Option(metavar="N", min=0, help="Jobs that ended more than N days ago.")] = 30,
    state: Annotated[
        list[str] | None,
        typer.Option("--state", "-s", metavar="STATE", help="Only done, dead or cancelled ones.", show_default=False),
    ] = None,
    db: opt.Db = None,
) -> None:
    """Forget jobs that ended long ago, with their stories. Never removes a picture."""
    from core.jobs import control
    from core.jobs.records import FINAL_STATES
    from kontext_tui.figures import counted

    with opt.open_queue(db, create=False) as conn:
        print(f"{counted(control.prune(conn, days=days, states=state or FINAL_STATES), 'job')} forgotten")


def backup(
    target: Annotated[Path, typer.Argument(metavar="FILE", help="Where the copy goes.", show_default=False)],
    db: opt.Db = None,
) -> None:
    """Copy the queue, whole, also while workers write to it."""
    from core.jobs import control

    with opt.open_queue(db, create=False) as conn:
        control.backup(conn, target)
    print(target)


def _chosen(conn: sqlite3.Connection, ids: list[int] | None, states: list[str]) -> list[int]:
    if not ids and not states:
        raise UsageError("name jobs by their numbers, or a whole state (see --help)")
    rows = conn.execute(f"SELECT id FROM jobs WHERE state IN ({', '.join('?' * len(states))}) ORDER BY id", states)
    return [*(ids or []), *(row["id"] for row in rows)]


def _tell(before: dict[int, str], words: dict[str, str]) -> None:
    """Say what became of each job; exit with 1 where one was left as it is."""
    for job_id, state in before.items():
        print(f"job {job_id}: {words.get(state, f'is {state}; left as it is')}")
    if not before:
        print("no such jobs", file=sys.stderr)
    if any(state not in words for state in before.values()):
        raise typer.Exit(ExitCode.JOBS_FAILED)
