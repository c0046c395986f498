"""`run` and `work`: the commands that edit."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from core.errors import ExitCode, UnavailableError, UsageError
from core.jobs.events import Event, Listener
from kontext_tui.cli import options as opt

if TYPE_CHECKING:
    from core.jobs.queue import Added


def run(
    script: opt.ScriptFile,
    input: opt.Input = None,
    output: opt.Output = None,
    model: opt.Model = None,
    precision: opt.Precision = None,
    runtime: opt.RuntimeName = None,
    steps: opt.Steps = None,
    seed: opt.Seed = None,
    context_refresh: opt.ContextRefresh = None,
    again: opt.Again = False,
    gpus: opt.Gpus = "auto",
    max_vram: opt.MaxVram = None,
    no_compile: opt.NoCompile = False,
    db: opt.Db = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Edit a script's pictures now, through the queue; interrupted, the same command goes on where it stopped."""
    from core import paths
    from core.jobs.devices import resolve
    from kontext_tui.cli.enqueue import Overrides, enqueue
    from kontext_tui.cli.narrate import narrator

    devices, vram = resolve(gpus), opt.max_vram(max_vram)
    opt.leave_uncompiled(no_compile)
    overrides = Overrides(input, output, model, precision, runtime, steps, seed, context_refresh)
    with opt.open_queue(db) as conn:
        added = enqueue(conn, script, overrides, again=again, quiet=quiet, fetch=True)
        with narrator(len(added.jobs), quiet=quiet) as tell:
            reporter = _Reporter(conn, added, tell, json=json)
            reporter.tell_reused()
            if added.count("done") < len(added.jobs):
                _work(conn, paths.database(db), devices, vram, reporter.listen, batch_id=added.batch_id, drain=True)
            reporter.finish()
        left = [row["error_kind"] for row in conn.execute(_NOT_DONE, (added.batch_id,))]
    if left:
        unavailable = all(kind == UnavailableError.kind for kind in left)
        raise typer.Exit(ExitCode.UNAVAILABLE if unavailable else ExitCode.JOBS_FAILED)


def work(
    drain: Annotated[bool, typer.Option("--drain", help="End once nothing waits any more.")] = False,
    log_format: Annotated[
        str, typer.Option(metavar="text|json", help="json: every event as a line of stdout.")
    ] = "text",
    gpus: opt.Gpus = "auto",
    max_vram: opt.MaxVram = None,
    no_compile: opt.NoCompile = False,
    db: opt.Db = None,
    quiet: opt.Quiet = False,
) -> None:
    """Edit what is queued, as it comes; Ctrl-C ends after the current step."""
    from core import paths
    from core.jobs.devices import resolve
    from core.jobs.records import counts
    from kontext_tui.cli.narrate import narrator

    devices, vram = resolve(gpus), opt.max_vram(max_vram)
    opt.leave_uncompiled(no_compile)
    if log_format not in ("text", "json"):
        raise UsageError(f"--log-format {log_format!r}: give text or json")
    with opt.open_queue(db) as conn, narrator(counts(conn)["queued"], quiet=quiet or log_format == "json") as tell:
        if log_format == "json":
            tell = _log
        _work(conn, paths.database(db), devices, vram, tell, batch_id=None, drain=drain)


def _log(event: Event) -> None:
    from datetime import datetime

    from kontext_tui.cli.report import print_json

    print_json({"at": datetime.now().astimezone().isoformat(timespec="milliseconds"), **vars(event)})


_NOT_DONE = (
    "SELECT j.error_kind FROM batch_jobs b JOIN jobs j ON j.id = b.job_id WHERE b.batch_id = ? AND j.state <> 'done'"
)


def _work(
    conn: sqlite3.Connection,
    database: Path,
    devices: list[str],
    max_vram: int | None,
    listener: Listener,
    *,
    batch_id: int | None,
    drain: bool,
) -> None:
    """Supervise workers until they are done; exit as the signal says where one came."""
    from core.jobs.records import left
    from core.jobs.supervisor import Plan, supervise

    # What edits, and how long it may be silent: the tests have a faster one, and less patience.
    plan = Plan(
        database,
        devices,
        batch_id,
        drain,
        max_vram=max_vram,
        studio=os.environ.get("KONTEXT_TUI_STUDIO", Plan.studio),
        step_seconds=float(os.environ.get("KONTEXT_TUI_STEP_SECONDS", Plan.step_seconds)),
        grace_seconds=float(os.environ.get("KONTEXT_TUI_GRACE_SECONDS", Plan.grace_seconds)),
    )
    with _signals() as caught:
        supervise(plan, conn, listener, lambda: len(caught))
    if caught:
        listener(Event("interrupted", data={"left": left(conn, batch_id)}))
        raise typer.Exit(128 + caught[0])


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the signals that ask to stop: after one the workers end after their step, after two at once."""
    caught: list[int] = []
    before = {
        number: signal.signal(number, lambda got, frame: caught.append(got))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Reporter:
    """Passes events on to the narration and prints each job as JSON once it has ended."""

    def __init__(self, conn: sqlite3.Connection, added: Added, tell: Listener, *, json: bool) -> None:
        self.conn, self.added, self.json, self.narrate = conn, added, json, tell
        self.computed: dict[int, set[int]] = {}
        self.printed: set[int] = set()

    def tell_reused(self) -> None:
        """The jobs that were done before this run."""
        from core.jobs.records import get_job

        for job_id, how in self.added.jobs.items():
            if how == "done":
                job = get_job(self.conn, job_id)
                self.narrate(Event("claimed", job_id, data={"name": job.name}))
                self.narrate(Event("reused", job_id, data={"output": job.output_path}))
                self.print(job_id)

    def listen(self, event: Event) -> None:
        if event.what == "turn_done" and event.job_id and event.turn and not event.data["reused"]:
            self.computed.setdefault(event.job_id, set()).add(event.turn)
        self.narrate(event)
        if event.what in ("done", "dead", "cancelled") and event.job_id:
            self.print(event.job_id)

    def finish(self) -> None:
        """The jobs that another process finished meanwhile."""
        for job_id in self.added.jobs:
            self.print(job_id)

    def print(self, job_id: int) -> None:
        if not self.json or job_id in self.printed:
            return
        from core.jobs.records import get_job, get_turns
        from kontext_tui.cli.report import job_object, print_json

        self.printed.add(job_id)
        turns = get_turns(self.conn, job_id)
        reused = frozenset(t.turn for t in turns if t.state == "done") - self.computed.get(job_id, set())
        print_json(job_object(get_job(self.conn, job_id), turns, reused=reused))
