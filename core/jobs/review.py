"""What a person decides about results: accept, reject, have one made again or go on from one. All while workers run.

A decision is about the bytes that were seen: a picture that is lost and made again, not to the byte, needs a new one.
A redo or a branch is a new turn of the same job, with a number, a seed and a file of its own; nothing that is there
is changed, and turns that follow the redone one stay as they are unless they are asked for too.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from core.edit.outputs import free_name
from core.errors import UsageError
from core.jobs.database import path_to_db, transaction
from core.jobs.events import Event
from core.jobs.queue import SEED_BITS
from core.jobs.records import FINAL_STATES, Job, Turn, get_job, get_turns
from core.jobs.results import Decision, Pick, Scope, results
from core.jobs.writes import now_ms, revive, write_event
from core.script import MAX_GUIDANCE, MAX_PROMPT, MAX_REFRESH, MAX_SEED, MAX_STEPS

MAX_JOB_TURNS = 999
"""Turns a job may have, redos and branches included."""


@dataclass(frozen=True)
class Change:
    """What a redo or a branch does otherwise; None keeps what the turn had, but for the seed (`redo`)."""

    prompt: str | None = None
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    context_refresh: int | None = None

    def __post_init__(self) -> None:
        text = f"text of 1 to {MAX_PROMPT:,} characters"
        checks = (
            ("prompt", self.prompt, text, lambda p: 0 < len(p.strip()) <= MAX_PROMPT),
            ("seed", self.seed, f"a whole number from 0 to {MAX_SEED}", lambda n: 0 <= n <= MAX_SEED),
            ("steps", self.steps, f"a whole number from 1 to {MAX_STEPS}", lambda n: 1 <= n <= MAX_STEPS),
            ("guidance", self.guidance, f"a number from 0 to {MAX_GUIDANCE}", lambda n: 0 <= n <= MAX_GUIDANCE),
            ("context_refresh", self.context_refresh, f"a whole number from 1 to {MAX_REFRESH}",
             lambda n: 1 <= n <= MAX_REFRESH),
        )  # fmt: skip
        for name, value, must, holds in checks:
            if value is not None and not holds(value):
                raise UsageError(f"{name} must be {must}")


# ---------------------------------------------------------------- decisions


def decide(
    conn: sqlite3.Connection,
    picks: Iterable[Pick],
    decision: Decision | None,
    *,
    seen: Mapping[Pick, str | None] | None = None,
) -> dict[Pick, Decision | None]:
    """Accept or reject results, or take a decision back (None); all or none. Returns what each was before.

    seen: the SHA-256 of the pictures that were looked at. Raises UsageError for a turn that there is not, that is not
    done, or whose picture is another by now.
    """
    before: dict[Pick, Decision | None] = {}
    with transaction(conn):
        for pick in picks:
            row = _done(conn, pick)
            if seen and pick in seen and seen[pick] != row["output_sha256"]:
                raise UsageError(f"{pick} has been made again since you looked at it: look once more")
            before[pick] = row["review"]
            _decide(conn, pick, row["review"], decision)
    return before


def decide_rest(
    conn: sqlite3.Connection, decision: Decision, job_id: int | None = None, *, name: str = ""
) -> dict[Pick, Decision | None]:
    """Decide about every result that nothing has been decided about: of one job, of pictures of a name, or of all."""
    with transaction(conn):
        scope = Scope("undecided", name)
        picks = results(conn, scope, job_id)
        for pick in picks:
            _decide(conn, pick, None, decision)
    return dict.fromkeys(picks)


def restore(conn: sqlite3.Connection, before: Mapping[Pick, Decision | None]) -> int:
    """Undo `decide` or `decide_rest`; returns how many decisions are as they were. Results that are gone are passed
    by."""
    restored = 0
    with transaction(conn):
        for pick, decision in before.items():
            row = _turn(conn, pick)
            if row is not None and row["state"] == "done":
                _decide(conn, pick, row["review"], decision)
                restored += 1
    return restored


def _decide(conn: sqlite3.Connection, pick: Pick, before: str | None, decision: Decision | None) -> None:
    if before == decision:
        return
    conn.execute(
        "UPDATE turns SET review = :review, reviewed_at = iif(:review IS NULL, NULL, :now),"
        " reviewed_sha256 = iif(:review IS NULL, NULL, output_sha256) WHERE job_id = :job AND turn = :turn",
        {"review": decision, "now": now_ms(), "job": pick.job_id, "turn": pick.turn},
    )
    write_event(conn, Event(decision or "unreviewed", pick.job_id, pick.turn))


# ---------------------------------------------------------------- redo and branch


def redo(
    conn: sqlite3.Connection, pick: Pick, change: Change | None = None, *, with_later: bool = False
) -> list[Pick]:
    """Have a result made again beside the old one; the job waits for a worker again. Returns the new turns.

    Without a change it gets a new seed; with one of another kind it keeps its seed, unless one is given.
    with_later: the turns that lead on from it are made again too, from the new result, with their own seeds.
    """
    change = change or Change()
    if change.seed is None and change == Change():
        change = replace(change, seed=secrets.randbits(SEED_BITS))
    with transaction(conn):
        if not pick.turn:
            raise UsageError("turn 0 is the input: a redo makes a result again; `branch` starts from the input")
        job, turns = _ready(conn, pick)
        old = _by_number(turns)[pick.turn]
        made = {pick.turn: _append(conn, job, turns, replace(old, redo_of=pick.turn), change, "redo")}
        for turn in following(turns, pick.turn) if with_later else ():
            again = replace(turn, redo_of=turn.turn, from_turn=made[turn.from_turn])
            made[turn.turn] = _append(conn, job, turns, again, Change(), "redo")
        _queue_again(conn, job)
    return [Pick(job.id, number) for number in made.values()]


def branch(conn: sqlite3.Connection, pick: Pick, change: Change) -> Pick:
    """Go on from a result (turn 0: the input) with a prompt of your own: a new turn. Returns it.

    Steps, guidance and context refresh are those of the turn it starts from, the seed is new, unless they are given.
    """
    if change.prompt is None:
        raise UsageError("a branch needs a prompt")
    if change.seed is None:
        change = replace(change, seed=secrets.randbits(SEED_BITS))
    with transaction(conn):
        job, turns = _ready(conn, pick)
        like = _by_number(turns)[pick.turn or 1]
        new = replace(like, from_turn=pick.turn, redo_of=None, output_path=job.output_path)
        number = _append(conn, job, turns, new, change, "branch")
        _queue_again(conn, job)
    return Pick(job.id, number)


def withdraw(conn: sqlite3.Connection, picks: Iterable[Pick]) -> None:
    """Take redos and branches back that have not begun, all or none. A job with nothing else to do is done again."""
    with transaction(conn):
        for pick in sorted(picks, reverse=True):
            _withdraw(conn, pick)


def _withdraw(conn: sqlite3.Connection, pick: Pick) -> None:
    job, turns = get_job(conn, pick.job_id), get_turns(conn, pick.job_id)
    turn = _by_number(turns).get(pick.turn)
    if turn is None or turn.added_at is None:
        raise UsageError(f"{pick} is no redo or branch that could be withdrawn")
    if turn.state != "pending":
        raise UsageError(f"{pick} has begun; reject what comes of it, or cancel the job")
    if job.state == "running":
        raise UsageError(f"a worker is at work on job {job.id}; cancel the job, or reject what comes of {pick}")
    if later := [t.turn for t in turns if t.from_turn == pick.turn]:
        raise UsageError(f"turn {later[0]} starts from {pick}: withdraw that first")
    conn.execute("DELETE FROM turns WHERE job_id = ? AND turn = ?", (job.id, pick.turn))
    write_event(conn, Event("withdrawn", job.id, pick.turn))
    if all(t.state == "done" for t in turns if t.turn != pick.turn):
        conn.execute(
            "UPDATE jobs SET state = 'done', run_after = NULL, error_kind = NULL, error = NULL, updated_at = ?,"
            " finished_at = (SELECT max(finished_at) FROM turns WHERE job_id = jobs.id) WHERE id = ?",
            (now_ms(), job.id),
        )


def _append(conn: sqlite3.Connection, job: Job, turns: list[Turn], like: Turn, change: Change, what: str) -> int:
    """Add a turn that is `like` another, changed; returns its number."""
    number = turns[-1].turn + 1
    if number > MAX_JOB_TURNS:
        raise UsageError(f"job {job.id} has {MAX_JOB_TURNS} turns, the most there can be; add the picture anew")
    final = Path(job.output_path)
    suffix = Path(like.output_path).suffix
    path = free_name(final.with_name(f"{final.stem}.turn-{number}{suffix}"), lambda path: _taken(conn, path))
    given = {key: value for key, value in vars(change).items() if value is not None}
    if "prompt" in given:
        given["prompt"] = change.prompt.strip()  # type: ignore[union-attr]
    new = replace(like, turn=number, state="pending", added_at=now_ms(), output_path=str(path), **given)
    names = ("turn", "from_turn", "prompt", "seed", "steps", "guidance", "context_refresh", "added_at", "redo_of")
    conn.execute(
        f"INSERT INTO turns (job_id, output_path, {', '.join(names)}) VALUES (?, ?{', ?' * len(names)})",
        (job.id, path_to_db(path), *(getattr(new, name) for name in names)),
    )
    data = {"of": like.redo_of} if like.redo_of else {"from": like.from_turn}
    write_event(conn, Event(what, job.id, number, data | {"prompt": new.prompt, "seed": new.seed}))
    turns.append(new)
    return number


def following(turns: Sequence[Turn], number: int) -> list[Turn]:
    """The turns that lead on from one, in order; of a turn and its redo, the turn alone."""
    reached, found = {number}, []
    for turn in turns:
        if turn.from_turn in reached and turn.turn != number and turn.redo_of not in reached:
            reached.add(turn.turn)
            found.append(turn)
    return found


def _queue_again(conn: sqlite3.Connection, job: Job) -> None:
    """A job that ended waits again; one that waits, is held or runs will come to the new turn by itself."""
    if job.state in FINAL_STATES:
        revive(conn, job.id)


def _ready(conn: sqlite3.Connection, pick: Pick) -> tuple[Job, list[Turn]]:
    job, turns = get_job(conn, pick.job_id), get_turns(conn, pick.job_id)
    if pick.turn:
        _done(conn, pick)
    row = conn.execute("SELECT cancel_requested FROM jobs WHERE id = ?", (job.id,)).fetchone()
    if row["cancel_requested"]:
        raise UsageError(f"job {job.id} is being cancelled; try again when it has ended")
    return job, turns


def _done(conn: sqlite3.Connection, pick: Pick) -> sqlite3.Row:
    row = _turn(conn, pick)
    if row is None:
        get_job(conn, pick.job_id)
        raise UsageError(f"job {pick.job_id} has no turn {pick.turn}; `kontext-tui show {pick.job_id}` lists them")
    if row["state"] != "done":
        raise UsageError(f"{pick} is not done yet: there is no result to decide about")
    return row


def _turn(conn: sqlite3.Connection, pick: Pick) -> sqlite3.Row | None:
    row: sqlite3.Row | None = conn.execute(
        "SELECT state, review, output_sha256 FROM turns WHERE job_id = ? AND turn = ?", (pick.job_id, pick.turn)
    ).fetchone()
    return row


def _by_number(turns: Iterable[Turn]) -> dict[int, Turn]:
    return {turn.turn: turn for turn in turns}


def _taken(conn: sqlite3.Connection, path: Path) -> bool:
    row = conn.execute("SELECT 1 FROM turns WHERE output_path = ?", (path_to_db(path),)).fetchone()
    return row is not None or os.path.lexists(path)
