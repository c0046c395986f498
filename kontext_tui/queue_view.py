"""What the queue screen reads, in one visit to the database, and what it says about it. Plain data, no widgets."""

from __future__ import annotations

import sqlite3
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from textual.content import Content

from core.jobs import board
from core.jobs.board import Glance, Row, Running, View
from core.jobs.database import snapshot
from core.jobs.records import Job, Turn, get_job, get_turns, story
from kontext_tui.figures import bar, counted, level, percentile, short_ms, short_path, short_time, size, spark
from kontext_tui.pace import Pace
from kontext_tui.telemetry import Gauge
from kontext_tui.text import safe_text
from kontext_tui.widgets.job_table import GLYPHS

TABS = (None, "running", "queued", "scheduled", "failed", "held", "done", "dead", "cancelled")


@dataclass(frozen=True)
class Ask:
    """What to read. `view` None: the order stays; `ranks`: what is ahead of queued rows; `left`: the steps of all."""

    after: int | None
    view: View | None
    window: Sequence[int] | None
    ranks: bool
    left: bool


@dataclass(frozen=True)
class Answer:
    glance: Glance
    numbers: array[int] | None
    rows: dict[int, Row] | None
    ahead: dict[int, int] | None
    steps_left: int | None
    order_seconds: float
    """What reading the order took: it is not read again at once."""
    left_seconds: float


def read(conn: sqlite3.Connection, ask: Ask, first: int, count: int) -> Answer:
    """One look at the queue. first, count: the part of a new order that is on show."""
    seen = board.glance(conn, ask.after)
    with snapshot(conn):
        began = time.perf_counter()
        numbers = board.numbers(conn, ask.view) if ask.view is not None else None
        ordered = time.perf_counter()
        window = numbers[first : first + count] if numbers is not None else ask.window
        rows = board.rows(conn, list(window)) if window is not None else None
        waiting = [row for row in (rows or {}).values() if row.state == "queued"]
        ahead = board.ahead(conn, waiting) if ask.ranks else None
        asked = time.perf_counter()
        left = board.steps_left(conn) if ask.left else None
        done = time.perf_counter()
    return Answer(seen, numbers, rows, ahead, left, ordered - began, done - asked)


def etas(rows: Mapping[int, Row], ahead: Mapping[int, int], seen: Glance, pace: Pace, left: int) -> dict[int, float]:
    """Seconds until jobs are done: those at work, and, unless the queue is paused, those that wait."""
    each = pace.step_seconds(seen.running)
    if each is None:
        return {}
    found = {row.id: row.steps_left * each for row in rows.values() if row.state == "running"}
    if not seen.running or seen.paused:
        return found
    running_left = sum(job.row.steps_left for job in seen.running)
    waiting = max(1, seen.counts["queued"] + seen.counts["scheduled"] + seen.counts["failed"])
    a_job = max(0.0, left - running_left) / waiting
    for number, before in ahead.items():
        if number in rows and rows[number].state == "queued":
            steps = (running_left + before * a_job) / len(seen.running) + rows[number].steps_left
            found[number] = steps * each
    return found


# ---------------------------------------------------------------- words


def tabs(counts: Mapping[str, int], active: str | None) -> list[tuple[str | None, str, int]]:
    """The states worth a tab: every one that has jobs, all of them together, and the one that is chosen."""
    everything = sum(counts.values())
    found = [(None, "all", everything)]
    return found + [(s, s, counts[s]) for s in TABS if s is not None and (counts[s] or s == active)]


def at_work(job: Running, pace: Pace, width: int, *, brief: bool) -> list[Content]:
    """What one worker is doing. brief: in two lines, where many are at work."""
    row, times = job.row, pace.steps_of(job)
    each = pace.step_seconds([job])
    left = f"{short_time(row.steps_left * each)} left" if each is not None else ""
    device, count = safe_text(job.device, 20), " saving" if row.saving else f" {row.step}/{row.steps}"
    name = safe_text(row.name, 200)
    called = Content(name).truncate(max(8, width // 3), ellipsis=True) + Content(" ") if brief else Content("")
    full, rest = bar(row.step / row.steps if row.steps else 0.0, width - called.cell_length - len(count) - 1)
    steps = Content.assemble(called, (full, "$success"), (rest, "$foreground 25%"), count)
    last = job.step_ms[-1] if job.step_ms else None
    if times:
        figures = f"{short_ms(last if last is not None else times[-1])} ms"
        spread = f" p50 {short_ms(percentile(times, 0.5))} p95 {short_ms(percentile(times, 0.95))}"
    else:
        figures, spread = "loading", ""
    if brief:
        line = spark(times, max(0, width - len(figures + spread) - len(device) - 3))
        return [
            Content.assemble((f"{device} ", "bold $primary"), (line, "$primary"), f" {figures}{spread}"),
            steps,
        ]
    lines = [
        Content.assemble(("▶ ", "$primary"), (f"{device} ", "bold $primary"), (name, "bold")),
        Content.assemble((f"turn {row.turn}/{row.turns} ", "$foreground 60%"), safe_text(job.prompt, 300)),
        steps,
        Content.styled(spark(times, width - 1), "$primary"),
        Content.assemble((figures, "bold"), (spread, "$foreground 60%"), f"  {left}"),
    ]
    return lines


def whole(seen: Glance, pace: Pace, left: int | None, now_ms: int) -> Content:
    """The queue as a whole: how fast, how long."""
    parts = []
    rate = pace.images_a_minute(now_ms) if seen.running else None
    if rate is not None:
        parts.append(f"{rate:.1f} img/min" if rate < 99.95 else f"{rate:.0f} img/min")
    seconds = pace.seconds_left(left, seen.running) if left else None
    waiting = seen.counts["queued"] + seen.counts["running"] + seen.counts["failed"] + seen.counts["scheduled"]
    if seen.paused:
        parts.append(f"{waiting:,} wait")
    elif seconds is not None:
        parts.append(f"{short_time(seconds)} for {counted(waiting, 'job')}")
    elif waiting:
        parts.append(f"{counted(waiting, 'job')} to do")
    else:
        parts.append("nothing waits")
    return Content(" · ").join([Content(part) for part in parts])


def idle(seen: Glance) -> Content:
    """Why nothing runs."""
    if seen.paused:
        return Content.assemble(("paused", "bold $warning"), ": p resumes")
    if seen.workers:
        where = safe_text(", ".join(sorted({worker.device for worker in seen.workers})), 40)
        what = "starting" if seen.counts["queued"] else "nothing to do"
        return Content(f"{len(seen.workers)} at work on {where}: {what}")
    return Content.assemble(("no worker is at work", "bold"), ": w starts one")


def gauge_line(gauge: Gauge, history: Sequence[float], width: int) -> Content:
    """Memory used of total, as figures and a line of the last minutes; coloured by how full it is."""
    part = gauge.used / gauge.total if gauge.total else 0.0
    tone = "$success" if part < 0.75 else "$warning" if part < 0.9 else "$error"
    words = f" {size(gauge.used)[:-4]}/{size(gauge.total)}"
    parts: list[Any] = [(gauge.name, "bold")]
    tail = ""
    if gauge.celsius is not None:
        tail += f" {gauge.celsius:.0f}°"
    if gauge.watts is not None:
        tail += f" {gauge.watts:.0f}W"
    room = width - len(gauge.name) - len(words) - len(tail) - 2
    line = level(history, gauge.total, max(0, room))
    hot = gauge.celsius is not None and gauge.celsius >= 83
    return Content.assemble(
        *parts, (words, tone), " ", (line.rjust(max(0, room)), tone), (tail, "$error" if hot else "")
    )


@dataclass(frozen=True)
class Detail:
    """One job, its turns and its story."""

    job: Job
    turns: list[Turn]
    events: list[dict[str, Any]]


def read_detail(conn: sqlite3.Connection, number: int) -> Detail:
    with snapshot(conn):
        return Detail(get_job(conn, number), get_turns(conn, number), story(conn, number))


TONES = {"running": "$primary", "done": "$success", "dead": "$error", "failed": "$warning", "held": "$warning"}


def describe(detail: Detail) -> Content:
    """A job in lines, as the detail pane shows it."""
    job = detail.job
    tone = TONES.get(job.state, "$foreground")
    lines = [
        Content.assemble((f"#{job.id} ", "$foreground 60%"), (safe_text(job.name, 400), "bold")),
        Content.assemble((f"{GLYPHS[job.state]} {job.state}", f"bold {tone}"), _when(job)),
    ]
    if job.error:
        lines.append(Content.styled(f"{job.error_kind}: {safe_text(job.error, 1000)}", "$error"))
    lines += [
        Content.assemble(("in   ", "$foreground 60%"), safe_text(short_path(job.input_path), 1000)),
        Content.assemble(("out  ", "$foreground 60%"), safe_text(short_path(job.output_path), 1000)),
        Content.styled(f"{safe_text(job.model, 200)}, {job.precision}, {job.runtime}", "$foreground 60%"),
        Content(""),
    ]
    for turn in detail.turns:
        lines += _turn_lines(turn)
    lines.append(Content(""))
    lines += [_event_line(event) for event in detail.events]
    return Content("\n").join(lines)


def _when(job: Job) -> str:
    if job.finished_at and job.started_at:
        return f"  in {short_time((job.finished_at - job.started_at) / 1000)}, at {_clock(job.finished_at)}"
    return f"  added {_clock(job.created_at)}"


def _turn_lines(turn: Turn) -> list[Content]:
    glyph, tone = {
        "accepted": ("✓", "$success"), "rejected": ("✗", "$error"), "done": ("✓", "$foreground 60%"),
        "running": ("▶", "$primary"), "saving": ("▶", "$primary"),
    }.get(turn.review or turn.state, ("·", "$foreground 60%"))  # fmt: skip
    facts = [f"{len(turn.step_ms)}/{turn.steps} steps" if turn.state != "done" else f"{turn.steps} steps"]
    if turn.step_ms:
        facts.append(f"{short_ms(median(turn.step_ms))} ms")
    if turn.seconds is not None and turn.state == "done":
        facts.append(short_time(turn.seconds))
    facts.append(f"guidance {turn.guidance:g}")
    if turn.context_refresh > 1:
        facts.append(f"context refresh {turn.context_refresh}")
    facts.append(f"seed {turn.seed}")
    if turn.review:
        facts.append(turn.review)
    if turn.redo_of:
        facts.append(f"turn {turn.redo_of} again")
    elif turn.from_turn != turn.turn - 1:
        facts.append(f"from {turn.from_turn or 'the input'}")
    return [
        Content.assemble((f"{glyph} {turn.turn} ", tone), safe_text(turn.prompt, 4000)),
        Content.styled("    " + ", ".join(facts), "$foreground 60%"),
    ]


def _event_line(event: Mapping[str, Any]) -> Content:
    what = event["what"] + (f" {event['turn']}" if event["turn"] else "")
    data = ", ".join(f"{key}: {value}" for key, value in event["data"].items())
    return Content.assemble(
        (f"{_clock(event['at'])}  ", "$foreground 60%"),
        what,
        (f"  {safe_text(data, 500)}" if data else "", "$foreground 60%"),
    )


def _clock(ms: int) -> str:
    then, now = time.localtime(ms / 1000), time.localtime()
    return time.strftime("%H:%M:%S" if then[:3] == now[:3] else "%Y-%m-%d %H:%M", then)
