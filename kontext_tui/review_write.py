"""What the review writes to the queue: each a short transaction that says what it did and can be taken back."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field

from core.errors import UsageError
from core.jobs import review
from core.jobs.results import Decision, Pick
from core.jobs.review import Change


@dataclass(frozen=True)
class Step:
    """Something that was done, for `undo`, and where it was done."""

    said: str
    pick: Pick
    before: Mapping[Pick, Decision | None] = field(default_factory=dict)
    """What was decided before."""
    added: tuple[Pick, ...] = ()
    """Turns that wait for a worker now."""


def decide(conn: sqlite3.Connection, pick: Pick, decision: Decision | None, sha256: str | None) -> Step:
    """Decide about the result that was seen. sha256: of its picture, by the queue."""
    before = review.decide(conn, [pick], decision, seen={pick: sha256})
    return Step(f"{pick} {decision or 'undecided'}", pick, before)


def decide_rest(
    conn: sqlite3.Connection, pick: Pick, decision: Decision, job_id: int | None, name: str
) -> Step | None:
    """Decide about whatever is undecided, of one job or of pictures of a name. None where nothing was."""
    before = review.decide_rest(conn, decision, job_id, name=name)
    where = f" of job {job_id}" if job_id is not None else ""
    return Step(f"{_results(len(before))}{where} {decision}", pick, before) if before else None


def redo(conn: sqlite3.Connection, pick: Pick, change: Change | None, with_later: bool) -> Step:
    return _added(pick, review.redo(conn, pick, change, with_later=with_later))


def branch(conn: sqlite3.Connection, pick: Pick, change: Change) -> Step:
    return _added(pick, [review.branch(conn, pick, change)])


def undo(conn: sqlite3.Connection, step: Step) -> str:
    """Take a step back; returns what to say. Raises UsageError for a redo that a worker has begun."""
    if step.added:
        review.withdraw(conn, step.added)
        return f"{_list(step.added)} withdrawn"
    restored = review.restore(conn, step.before)
    if not restored:
        raise UsageError(f"{step.said}: that is gone")
    return f"taken back: {step.said}"


def _added(pick: Pick, made: list[Pick]) -> Step:
    return Step(f"{_list(made)} queued", pick, added=tuple(made))


def _list(picks: list[Pick] | tuple[Pick, ...]) -> str:
    return ", ".join(map(str, picks))


def _results(count: int) -> str:
    return f"{count:,} result{'s' if count != 1 else ''}"
