"""From a script's file and the command line's overrides to jobs in the queue: the first half of `add` and `run`."""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core import script as scripts
from core.edit.models import find_spec, locate
from core.edit.outputs import check_folder, is_result
from core.edit.runtimes import choose
from core.inputs import find_inputs
from core.jobs import queue
from core.jobs.queue import Added


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

    def given(self) -> dict[str, object]:
        return {key: value for key, value in vars(self).items() if value not in (None, [])}


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
    """Read the script, find its pictures and queue them. Whatever is wrong is said before anything is queued.

    fetch: download a model of the hub now, because it is needed now.
    """
    script = scripts.load(path, overrides.given())
    spec = find_spec(script.model, script.folder)
    if fetch or spec.folder is not None:
        choose(script.runtime, script.precision, spec.name, locate(spec, download=fetch))
    check_folder(script.output_folder)
    found = find_inputs(script, is_result=is_result)
    with _hashing(len(found), quiet=quiet) as progress:
        jobs = queue.plan(script, found, spec, progress)
    return queue.add(conn, script, spec, jobs, again=again, run_after=run_after, priority=priority)


@contextmanager
def _hashing(total: int, *, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar while pictures are read for their hashes; a thousand small ones take no time, a card of RAWs does."""
    if quiet or total < 200 or not sys.stderr.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("reading pictures", total=total)
        yield lambda done: progress.update(task, completed=done)
