"""Finished turns and where a person stands with them: counted, listed, walked through. Reads alone."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Literal

Decision = Literal["accepted", "rejected"]
Which = Literal["undecided", "accepted", "rejected"]


@dataclass(frozen=True, order=True)
class Pick:
    """One result: a turn of a job. Written as `3.2`."""

    job_id: int
    turn: int

    def __str__(self) -> str:
        return f"{self.job_id}.{self.turn}"


@dataclass(frozen=True)
class Scope:
    """Which results are looked at: those with one decision, those of pictures whose name holds some text, or all."""

    which: Which | None = None
    name: str = ""
    """Part of a picture's name, whatever its case."""

    @property
    def sql(self) -> str:
        """Conditions on a row of `turns`, its parameters named as in `values`."""
        decided = {None: "", "undecided": " AND review IS NULL"}.get(self.which, " AND review = :which")
        # A name that is not UTF-8 is a BLOB.
        named = " AND job_id IN (SELECT id FROM jobs WHERE instr(lower(CAST(name AS TEXT)), lower(:name)))"
        return f"state = 'done'{decided}{named if self.name else ''}"

    @property
    def values(self) -> dict[str, str | None]:
        return {"which": self.which, "name": self.name}


ALL = Scope()


@dataclass(frozen=True)
class Tally:
    """How many results there are, by what was decided about them."""

    undecided: int
    accepted: int
    rejected: int

    @property
    def all(self) -> int:
        return self.undecided + self.accepted + self.rejected


def tally(conn: sqlite3.Connection, scope: Scope = ALL) -> Tally:
    row = conn.execute(
        "SELECT count(*) - count(review) AS undecided, total(review = 'accepted') AS accepted,"
        f" total(review = 'rejected') AS rejected FROM turns INDEXED BY turns_done WHERE {scope.sql}",
        scope.values,
    ).fetchone()
    return Tally(row["undecided"], int(row["accepted"]), int(row["rejected"]))


def next_undecided(conn: sqlite3.Connection, after: Pick | None = None, *, name: str = "") -> Pick | None:
    """The first result without a decision that comes after another one; from the start again where none does."""
    scope = Scope("undecided", name)
    sql = (
        f"SELECT job_id, turn FROM turns INDEXED BY turns_unreviewed WHERE {scope.sql}"
        " AND (job_id, turn) > (:job, :turn) ORDER BY job_id, turn LIMIT 1"
    )
    for start in (after, Pick(0, 0)):
        if start is not None:
            row = conn.execute(sql, {**scope.values, "job": start.job_id, "turn": start.turn}).fetchone()
            if row:
                return Pick(row["job_id"], row["turn"])
    return None


def neighbour(conn: sqlite3.Connection, job_id: int, step: Literal[-1, 1], scope: Scope = ALL) -> int | None:
    """The next job (or the one before) with a result to look at."""
    beyond, order = (">", "ASC") if step > 0 else ("<", "DESC")
    row = conn.execute(
        f"SELECT job_id FROM turns INDEXED BY turns_done WHERE {scope.sql}"
        f" AND job_id {beyond} :job ORDER BY job_id {order} LIMIT 1",
        {**scope.values, "job": job_id},
    ).fetchone()
    return int(row["job_id"]) if row else None


def position(conn: sqlite3.Connection, job_id: int, scope: Scope = ALL) -> tuple[int, int]:
    """How many jobs with a result there are up to a job, itself included, and in all."""
    row = conn.execute(
        "SELECT count(*) AS jobs, total(job_id <= :job) AS position FROM"
        f" (SELECT DISTINCT job_id FROM turns INDEXED BY turns_done WHERE {scope.sql})",
        {**scope.values, "job": job_id},
    ).fetchone()
    return int(row["position"]), row["jobs"]


def results(
    conn: sqlite3.Connection, scope: Scope = ALL, job_id: int | None = None, *, limit: int = -1
) -> list[Pick]:
    """Finished turns in order: all in a scope, or those of one job."""
    one = "" if job_id is None else " AND job_id = :job"
    rows = conn.execute(
        f"SELECT job_id, turn FROM turns WHERE {scope.sql}{one} ORDER BY job_id, turn LIMIT :limit",
        {**scope.values, "job": job_id, "limit": limit},
    )
    return [Pick(row["job_id"], row["turn"]) for row in rows]
