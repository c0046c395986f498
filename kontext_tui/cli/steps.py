"""Telling on stderr how a long command goes: a bar on a terminal, a line a stage elsewhere, nothing if quiet.

With KONTEXT_TUI_PROGRESS=json in the environment, every change is a line of JSON instead: {"what", "done", "total"}.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kontext_tui.text import safe_text

ENVIRONMENT = "KONTEXT_TUI_PROGRESS"
JSON_SECONDS = 0.2
"""How often the same stage is told of as JSON."""

Report = Callable[[str, float, float], None]
"""What is being done, and how far of how much."""


def say(line: str, *, quiet: bool) -> None:
    if not quiet:
        print(safe_text(line), file=sys.stderr, flush=True)


@contextmanager
def steps(*, quiet: bool, counted: bool = True) -> Iterator[Report]:
    """A function to call as a command goes on. counted: done and total are numbers of things, not shares."""
    if os.environ.get(ENVIRONMENT) == "json":
        yield _json()
    elif quiet or not sys.stderr.isatty():
        yield _plain(quiet=quiet)
    else:
        with _bars(counted=counted) as report:
            yield report


@contextmanager
def _bars(*, counted: bool) -> Iterator[Report]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
    )  # fmt: skip

    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(bar_width=24),
        MofNCompleteColumn() if counted else TaskProgressColumn(), TimeRemainingColumn(compact=True),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def report(what: str, done: float, total: float) -> None:
            if not counted and tasks:  # one bar that its stages share
                progress.update(next(iter(tasks.values())), description=safe_text(what), completed=done, total=total)
                return
            if what not in tasks:
                tasks[what] = progress.add_task(safe_text(what), total=total)
            progress.update(tasks[what], completed=done)

        yield report


def _plain(*, quiet: bool) -> Report:
    told: set[str] = set()

    def report(what: str, done: float, total: float) -> None:
        if what not in told:
            say(what, quiet=quiet)
        told.add(what)

    return report


def _json() -> Report:
    before: tuple[str, float] = ("", 0.0)

    def report(what: str, done: float, total: float) -> None:
        nonlocal before
        now = time.monotonic()
        if what != before[0] or done >= total or now - before[1] >= JSON_SECONDS:
            before = (what, now)
            print(json.dumps({"what": what, "done": done, "total": total}), file=sys.stderr, flush=True)

    return report
