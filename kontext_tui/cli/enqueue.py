"""From a script's file and the command line's overrides to jobs in the queue: the first half of `add` and `run`."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core import script as scripts
from core.edit.models import ModelSpec, find_spec, locate
from core.edit.outputs import check_folder, is_result
from core.edit.runtimes import choose, require_every_step_full
from core.inputs import find_inputs
from core.jobs import queue
from core.jobs.queue import Added, NewJob
from core.script import Script


@dataclass(frozen=True)
class Overrides:
    """What the command line says instead of the script; None where it says nothing."""

    input: list[str] | None = None
    output: str | None = None
    model: str | None = None
    precision: str | None = None
    runtime: str | None = None
    steps: int | None = None
    seed: int | None = None
    context_refresh: int | None = None

    def given(self) -> dict[str, object]:
        return {key: value for key, value in vars(self).items() if value not in (None, [])}


@dataclass(frozen=True)
class Prepared:
    """Jobs that are ready to be queued: pictures found and read, model and output checked."""

    script: Script
    spec: ModelSpec
    jobs: list[NewJob]

    def add(
        self, conn: sqlite3.Connection, *, again: bool = False, run_after: int | None = None, priority: int = 0
    ) -> Added:
        return queue.add(conn, self.script, self.spec, self.jobs, again=again, run_after=run_after, priority=priority)


def prepare(
    script: Script,
    *,
    fetch: bool = False,
    on_found: Callable[[int], None] = lambda pictures: None,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Prepared:
    """Find a script's pictures and read them for their hashes. Whatever is wrong is said before anything is queued.

    fetch: download a model of the hub now, because it is needed now.
    """
    spec = find_spec(script.model, script.folder)
    keep_context = script.most_refresh > 1
    require_every_step_full(script.runtime, keep_context)
    if fetch or spec.folder is not None:
        folder = locate(spec, download=fetch)
        choose(script.runtime, script.precision, spec.name, folder, keep_context=keep_context)
    check_folder(script.output_folder)
    found = find_inputs(script, is_result=is_result)
    on_found(len(found))
    return Prepared(script, spec, queue.plan(script, found, spec, on_progress))


def enqueue(
    conn: sqlite3.Connection,
    path: Path,
    overrides: Overrides,
    *,
    again: bool,
    quiet: bool,
    fetch: bool = False,
    run_after: int | None = None,
    priority: int = 0,
) -> Added:
    """Read the script's file, prepare its jobs and queue them."""
    script = scripts.load(path, overrides.given())
    with _hashing(quiet=quiet) as (found, progress):
        prepared = prepare(script, fetch=fetch, on_found=found, on_progress=progress)
    return prepared.add(conn, again=again, run_after=run_after, priority=priority)


def sentence(added: Added, start: str = "") -> str:
    """What adding came to, for a person."""
    new = added.count("new", "again")
    parts = [f"{new:,} queued" + (f", to start from {start}" if start and new else "")]
    if waiting := added.count("waiting"):
        parts.append(f"{waiting:,} in the queue already")
    if done := added.count("done"):
        parts.append(f"{done:,} done before")
    return ", ".join(parts)


@contextmanager
def _hashing(*, quiet: bool) -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """A bar while pictures are read for their hashes; a thousand small ones take no time, a card of RAWs does."""
    if quiet or not sys.stderr.isatty():
        yield lambda found: None, lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading pictures", visible=False)
        yield (
            lambda found: progress.update(task, total=found, visible=found >= 200),
            lambda done: progress.update(task, completed=done),
        )
