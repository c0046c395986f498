"""What the review shows of a job: its turns in the order of their branches, and their facts as short safe lines."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from textual.content import Content

from core.edit.difference import Difference
from core.jobs import results
from core.jobs.database import snapshot
from core.jobs.records import Job, Turn, get_job, get_turns
from core.jobs.results import Pick, Scope, Tally
from kontext_tui.text import safe_text

MARKS = {"accepted": "✔", "rejected": "✘", "done": "•", "running": "▸", "saving": "▸", "pending": "…"}
"""A turn's standing in one cell: what was decided, else its state."""
COLOURS = {"accepted": "$success", "rejected": "$error", "running": "$warning", "saving": "$warning"}
Base = Literal["source", "input", "old"]
"""What a result is compared with: what it was made from, the job's input, or the turn it is a redo of."""


@dataclass(frozen=True)
class Totals:
    """Where a job stands among all that are walked through, and what is decided about them."""

    job_id: int
    scope: Scope
    position: int
    jobs: int
    tally: Tally


@dataclass(frozen=True)
class JobView:
    """A job as it is looked at, all of one moment."""

    job: Job
    turns: tuple[Turn, ...]

    def turn(self, number: int) -> Turn | None:
        return next((turn for turn in self.turns if turn.turn == number), None)

    def compared(self, turn: Turn, base: Base) -> int:
        """The turn that another one is compared with; 0 is the input."""
        if base == "old" and turn.redo_of is not None and self.turn(turn.redo_of) is not None:
            return turn.redo_of
        return 0 if base == "input" else turn.from_turn

    def picture(self, number: int) -> tuple[str, str | None]:
        """The path of a turn's picture and what its hash should be."""
        turn = self.turn(number)
        if turn is None:
            return self.job.input_path, self.job.input_sha256
        return turn.output_path, turn.output_sha256


def load_job(conn: sqlite3.Connection, job_id: int) -> JobView:
    """Read a job for review. Raises UsageError where it is gone."""
    with snapshot(conn):
        return JobView(get_job(conn, job_id), tuple(get_turns(conn, job_id)))


def load_totals(conn: sqlite3.Connection, job_id: int, scope: Scope) -> Totals:
    """Count what there is: of 100,000 jobs of three turns in 0.1 s, which is why it is not done at every step."""
    with snapshot(conn):
        position, jobs = results.position(conn, job_id, scope)
        return Totals(job_id, scope, position, jobs, results.tally(conn, Scope(name=scope.name)))


def first_pick(conn: sqlite3.Connection, scope: Scope) -> Pick | None:
    """Where a review begins: at the first result nobody has decided about, else at the first there is."""
    first = next(iter(results.results(conn, scope, limit=1)), None)
    return first if scope.which else results.next_undecided(conn, name=scope.name) or first


def step_job(conn: sqlite3.Connection, job_id: int, step: Literal[-1, 1], scope: Scope) -> Pick | None:
    """The next job, at its first undecided turn, else at the last result of its script."""
    beside = results.neighbour(conn, job_id, step, scope)
    return pick_in(conn, beside, scope) if beside is not None else None


def end_job(conn: sqlite3.Connection, end: Literal[-1, 1], scope: Scope) -> Pick | None:
    """The first or the last job."""
    return step_job(conn, -1 if end < 0 else 2**62, 1 if end < 0 else -1, scope)


def pick_in(conn: sqlite3.Connection, job_id: int, scope: Scope = results.ALL) -> Pick | None:
    """Which result of a job to look at first."""
    done = results.results(conn, scope, job_id)
    undecided = results.results(conn, Scope("undecided"), job_id)
    return next((pick for pick in done if pick in undecided), None) or (done[-1] if done else None)


def in_order(turns: Sequence[Turn]) -> list[Turn]:
    """Depth first: each turn is followed by those that go on from it, so that chains stand together."""
    following: dict[int, list[Turn]] = {}
    for turn in turns:
        following.setdefault(turn.from_turn, []).append(turn)
    ordered: list[Turn] = []
    waiting = following.get(0, [])[::-1]
    while waiting:
        ordered.append(waiting.pop())
        waiting += following.get(ordered[-1].turn, [])[::-1]
    return ordered


# ---------------------------------------------------------------- in words


def mark(turn: Turn) -> str:
    return MARKS[turn.review or turn.state]


def origin(turn: Turn) -> str:
    start = f"from turn {turn.from_turn}" if turn.from_turn else "from the input"
    return f"{start}, redo of turn {turn.redo_of}" if turn.redo_of else start


def called(number: int) -> str:
    return f"turn {number}" if number else "the input"


def waiting(turn: Turn) -> str:
    """Of a turn that is not done."""
    if turn.state == "pending":
        return "waits for a worker"
    return f"at work: step {len(turn.step_ms)} of {turn.steps}"


def facts(turn: Turn, difference: Difference | None) -> str:
    """How much changed, seed, steps and time of a turn, as one line."""
    parts = [f"{difference.share:.0%} changed"] if difference is not None else []
    if turn.state == "done":
        if turn.seconds is not None:
            parts.append(f"{turn.seconds:.1f} s")
        if turn.step_ms:
            parts.append(f"{median(turn.step_ms):.0f} ms a step")
    parts += [f"{turn.steps} steps", f"guidance {turn.guidance:g}", f"seed {turn.seed}"]
    if turn.context_refresh > 1:
        parts.append(f"context refresh {turn.context_refresh}")
    if turn.runtime and turn.state == "done":
        parts.append(f"{turn.precision} on {turn.runtime}")
    return safe_text(" · ".join(parts))


def heading(data: JobView, pick: Pick, scope: Scope, totals: Totals | None, said: str) -> Content:
    """The line above: which result, how far through, what is decided. said: what was done last."""
    parts: list[Content | str | tuple[str, str]] = [(f"{pick} ", "bold"), (safe_text(data.job.name, 40), "bold")]
    known = totals is not None and totals.scope == scope
    if totals is not None and known and totals.job_id == data.job.id:
        parts.append((f"  job {totals.position:,} of {totals.jobs:,}", "$foreground 60%"))
    only = [f"{scope.which} only"] if scope.which else []
    only += [f"/{safe_text(scope.name, 20)}"] if scope.name else []
    if only:
        parts.append((f"  {', '.join(only)}", "$warning"))
    if totals is not None and known:
        tally = totals.tally
        parts.append(f"  {tally.undecided:,} undecided")
        parts.append((f"  {tally.accepted:,} ✔", "$success"))
        parts.append((f"  {tally.rejected:,} ✘", "$error"))
    if said:
        parts.append((f"   {said}, u undoes", "$foreground 60%"))
    return Content.assemble(*parts)


def words(data: JobView, pick: Pick, difference: Difference | None) -> Content:
    """The lines below: the prompt, and the facts."""
    turn = data.turn(pick.turn)
    if turn is None:
        lines = [
            Content.assemble(("The input, as it was given", "bold")),
            Content(safe_text(data.job.input_path, 300)),
        ]
    else:
        state = turn.review or ("undecided" if turn.state == "done" else waiting(turn))
        lines = [
            Content.assemble((safe_text(turn.prompt, 300), "bold")),
            Content.assemble(
                (f"{mark(turn)} {state}", COLOURS.get(turn.review or turn.state, "")),
                (f" · {origin(turn)} · {facts(turn, difference)}", "dim"),
            ),
        ]
    if data.job.state == "dead" and data.job.error:
        lines.append(Content.assemble((safe_text(f"the job is dead: {data.job.error}", 200), "$error")))
    return Content("\n").join(lines)
