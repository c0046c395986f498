"""`run` and `work`: the commands that edit."""

from __future__ import annotations

import signal
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from core.errors import ExitCode
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
    again: opt.Again = False,
    device: opt.Device = "auto",
    db: opt.Db = None,
    json: opt.Json = False,
    quiet: opt.Quiet = False,
) -> None:
    """Edit a script's pictures now, through the queue; interrupted, the same command goes on where it stopped."""
    from kontext_tui.cli.enqueue import Overrides, enqueue
    from kontext_tui.cli.narrate import narrator

    overrides = Overrides(input, output, model, precision, runtime, steps, seed)
    with opt.open_queue(db) as conn:
        added = enqueue(conn, script, overrides, again=again, quiet=quiet, fetch=True)
        with narrator(len(added.jobs), quiet=quiet) as tell:
            reporter = _Reporter(conn, added, tell, json=json)
            reporter.tell_reused()
            if added.count("done") < len(added.jobs):
                _drain(conn, device, reporter.listen, batch_id=added.batch_id)
            reporter.finish()
        states = [row["state"] for row in conn.execute(_BATCH_STATES, (added.batch_id,))]
    if any(state != "done" for state in states):
        raise typer.Exit(ExitCode.JOBS_FAILED)


def work(
    drain: Annotated[bool, typer.Option("--drain", help="End once nothing waits any more.")] = False,
    device: opt.Device = "auto",
    db: opt.Db = None,
    quiet: opt.Quiet = False,
) -> None:
    """Edit what is queued, as it comes; Ctrl-C ends after the current step."""
    from core.jobs.records import counts
    from kontext_tui.cli.narrate import narrator

    with opt.open_queue(db) as conn, narrator(counts(conn)["queued"], quiet=quiet) as tell:
        _drain(conn, device, tell, forever=not drain)


_BATCH_STATES = "SELECT j.state FROM batch_jobs b JOIN jobs j ON j.id = b.job_id WHERE b.batch_id = ?"


def _drain(
    conn: sqlite3.Connection,
    device: str,
    listener: Listener,
    *,
    batch_id: int | None = None,
    forever: bool = False,
) -> None:
    from core.edit.studio import LocalStudio
    from core.jobs import worker as workers
    from core.jobs.records import unfinished

    studio = LocalStudio(device)
    studio.on_load = lambda loading: listener(Event("loaded", data=vars(loading)))
    told = 0

    def wait() -> bool:
        nonlocal told
        if batch_id is None:
            return forever
        left = unfinished(conn, batch_id)
        if left and left != told:
            listener(Event("waiting", data={"jobs": left}))
        told = left
        return left > 0

    with _signals() as caught:
        worker = workers.Worker(conn, studio, listener, stop=lambda: bool(caught))
        try:
            workers.drain(worker, batch_id=batch_id, wait=wait)
        except workers.Stopped:
            raise typer.Exit(128 + caught[0]) from None


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collect the signals that ask to stop; the second one acts at once, as if nobody had listened."""
    caught: list[int] = []

    def note(number: int, frame: object) -> None:
        caught.append(number)
        for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(other, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
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
