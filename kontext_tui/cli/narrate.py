"""Telling a person on stderr how a run goes: bars on a terminal, plain lines elsewhere, nothing with `--quiet`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import typer

from core.jobs.events import Event, Listener
from kontext_tui.figures import counted, size
from kontext_tui.text import safe_text

if TYPE_CHECKING:
    from rich.progress import Progress


@dataclass
class Tally:
    """What a run came to, gathered from its events."""

    began: float = field(default_factory=time.perf_counter)
    ends: dict[str, int] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    step_ms: list[float] = field(default_factory=list)
    turn_seconds: list[float] = field(default_factory=list)
    job_seconds: float = 0.0
    model_seconds: float = 0.0
    """Inside the model, in the jobs that were done: those that `job_seconds` counts."""
    attempts: dict[int, float] = field(default_factory=dict)
    """The same of the jobs at work."""
    import_seconds: float = 0.0
    load_seconds: float = 0.0
    load_began: float = 0.0
    first_step_seconds: float | None = None
    peak_bytes: int = 0
    left: dict[str, int] | None = None
    """Jobs by state that an interrupted run leaves to the next one."""

    def add(self, event: Event) -> None:
        data = event.data
        if event.what == "claimed" and event.job_id is not None:
            self.names[event.job_id] = data["name"]
            self.attempts[event.job_id] = 0.0
        elif event.what == "loaded":
            self.import_seconds += data["import_seconds"]
            self.load_seconds += data["seconds"]
            self.load_began = time.perf_counter() - data["seconds"]
        elif event.what == "step":
            self.step_ms.append(data["ms"])
            if self.first_step_seconds is None:
                self.first_step_seconds = time.perf_counter() - self.load_began
        elif event.what == "turn_done" and not data["reused"]:
            self.turn_seconds.append(data["seconds"])
            self.attempts[event.job_id or 0] += data["model_seconds"]
            self.peak_bytes = max(self.peak_bytes, data["peak_bytes"])
        elif event.what in ("done", "dead", "cancelled", "reused"):
            self.ends[event.what] = self.ends.get(event.what, 0) + 1
            if event.what == "done":
                self.job_seconds += data["seconds"]
                self.model_seconds += self.attempts[event.job_id or 0]
        elif event.what == "interrupted":
            self.left = data["left"]

    def name(self, event: Event) -> str:
        return safe_text(self.names.get(event.job_id or 0, f"job {event.job_id}"), 60)

    def summary(self) -> list[str]:
        """The closing lines: what ended how, and what it took."""
        words = {"done": "done", "reused": "done before", "dead": "failed", "cancelled": "cancelled"}
        nothing = "nothing to do" if self.left is None else "nothing finished"
        ends = ", ".join(f"{n} {words[what]}" for what, n in self.ends.items()) or nothing
        lines = [f"{ends} in {duration(time.perf_counter() - self.began)}"]
        if self.turn_seconds:
            took = (
                f"{counted(len(self.turn_seconds), 'turn')}, {median(self.turn_seconds):.2f} s a turn, "
                f"{median(self.step_ms):.0f} ms a step (medians)"
            )
            if self.model_seconds:
                working = max(self.job_seconds - self.import_seconds - self.load_seconds, self.model_seconds)
                took += f"; {1 - self.model_seconds / working:.0%} of the jobs' time outside the model"
            lines.append(took)
            memory = f"peak memory {size(self.peak_bytes)}"
            if self.import_seconds:
                memory = (
                    f"{self.import_seconds:.1f} s to start the libraries, then {self.first_step_seconds or 0:.1f} s "
                    f"from loading the model to its first step; {memory}"
                )
            lines.append(memory)
        if self.left is not None:
            left = ", ".join(f"{n} {state}" for state, n in self.left.items()) or "nothing"
            lines.append(f"interrupted; left: {left}; the same command goes on")
        return lines


@contextmanager
def narrator(total: int, *, quiet: bool) -> Iterator[Listener]:
    """A listener that shows a run of `total` jobs on stderr, and sums it up at the end."""
    tally = Tally()
    if quiet:
        yield tally.add
        return
    try:
        if sys.stderr.isatty():
            with _bars(total) as progress:
                yield _Bars(progress, total, tally).show
        else:
            yield _Lines(total, tally).show
    except typer.Exit:  # interrupted: what was done by then is told too
        _print(tally.summary())
        raise
    _print(tally.summary())


def _print(lines: list[str]) -> None:
    for line in lines:
        print(line, file=sys.stderr)


@dataclass
class _Lines:
    """One plain line a turn and a job, for logs."""

    total: int
    tally: Tally

    def show(self, event: Event) -> None:
        self.tally.add(event)
        line = sentence(event, self.tally)
        if line:
            print(line, file=sys.stderr, flush=True)


@dataclass
class _Bars:
    """A bar for the batch and one for the turn at work, with lines above them for what is finished."""

    progress: Progress
    total: int
    tally: Tally

    def __post_init__(self) -> None:
        self.batch = self.progress.add_task("pictures", total=self.total, detail="")
        self.turn = self.progress.add_task("starting", total=None, detail="")
        self.ended = 0
        self.parts: dict[int | None, float] = {}  # of pictures at work: one a worker, and one that is being saved

    def show(self, event: Event) -> None:
        self.tally.add(event)
        data = event.data
        if event.what == "turn":
            self.progress.reset(
                self.turn,
                total=data["steps"],
                description=f"{self.tally.name(event)}  turn {event.turn}/{data['turns']}",
                detail=safe_text(data["prompt"], 40),
            )
        elif event.what == "step":
            self.progress.update(
                self.turn,
                completed=data["step"],
                detail=f"step {data['step']}/{data['steps']}  {data['ms']:.0f} ms",
            )
            # Parts of a picture count, so that the time left is known before the first one is done.
            self.parts[event.job_id] = ((event.turn or 1) - 1 + data["step"] / data["steps"]) / data["turns"]
            self.progress.update(self.batch, completed=self.ended + sum(self.parts.values()))
        elif event.what == "loading":
            self.progress.update(self.turn, description=f"loading {safe_text(data['model'], 40)}", total=None)
        elif event.what in ("done", "dead", "cancelled", "reused"):
            self.ended += 1
            self.parts.pop(event.job_id, None)
            self.progress.update(self.batch, completed=self.ended + sum(self.parts.values()))
        elif event.what in ("released", "failed", "lost", "paused"):
            self.parts.pop(event.job_id, None)
        line = sentence(event, self.tally)
        if line:
            from rich.text import Text

            style = {"dead": "red", "note": "dim", "turn_done": "dim"}.get(event.what, "")
            self.progress.console.print(Text(line, style=style), soft_wrap=True)


def _bars(total: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
        TimeRemainingColumn(compact=True),
        console=Console(stderr=True),
        transient=True,
    )


def sentence(event: Event, tally: Tally) -> str | None:
    """An event as one safe line, None for those not worth one."""
    name, data = tally.name(event), event.data
    if event.what == "turn_done" and data["reused"]:
        return f"{name}: turn {event.turn} was done before: {_place(data['output'])}"
    if event.what == "turn_done":
        return (
            f"{name}: turn {event.turn}/{data['turns']} {data['seconds']:.2f} s, "
            f"{median(data['step_ms']):.0f} ms a step, peak {size(data['peak_bytes'])}: {_place(data['output'])}"
        )
    if event.what == "note":
        return f"{name}: {safe_text(data['text'])}"
    if event.what == "dead":
        return f"{name}: failed ({data['kind']}): {safe_text(data['message'])}"
    if event.what == "reused":
        return f"{name}: done before: {_place(data['output'])}"
    if event.what in ("cancelled", "released"):
        return f"{name}: {event.what}"
    if event.what == "failed":
        wait = f"again in {duration(data['retry_seconds'])}" if data["retry_seconds"] else "again at once"
        return f"{name}: {data['kind']}, {wait}: {safe_text(data['message'])}"
    if event.what == "resumed":
        return f"{name}: turn {event.turn} goes on after step {data['step']} of {data['steps']}"
    if event.what == "paused":
        return f"the queue is paused: {safe_text(data['message'])}; `kontext-tui resume` goes on"
    if event.what == "busy":
        return "the queue's database is locked by another program; waiting for it"
    if event.what == "database":
        return f"the queue's database refuses: {safe_text(data['message'])}; trying again"
    if event.what == "hung":
        return f"{data['device']}: no step for {duration(data['seconds'])}; its worker is ended"
    if event.what == "lost":
        return f"{name}: its worker ended; the job goes on in another"
    if event.what == "waiting" and data.get("paused"):
        return f"waiting: the queue is paused ({safe_text(data['paused'])}); `kontext-tui resume` goes on"
    if event.what == "waiting":
        jobs = counted(data["jobs"], "job")
        return f"waiting for {jobs}: at work in another process, or before the next attempt"
    if event.what == "loaded":
        how = f"{data['precision']} by {data['runtime']}, {data['reason']}"
        return f"{safe_text(data['model'])} on {data['device']}: {how}"
    return None


def _place(path: str) -> str:
    """A path as short as it can be said from the folder you are in."""
    folder = str(Path.cwd()) + "/"
    return safe_text(path.removeprefix(folder))


def duration(seconds: float) -> str:
    """0.8 s, 12 s, 3 min 5 s, 7 h 20 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
