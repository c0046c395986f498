"""The tables of `jobs.db`, as numbered steps that are never edited once released; a change is a new step.

Times are milliseconds since the epoch. Paths and names are TEXT, or a BLOB of the file system's bytes where they
are not UTF-8 (hence ANY). States: `scheduled -> queued -> running -> done | failed -> scheduled | dead |
cancelled`, plus `held`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlite_utils.migrations import Migrations

if TYPE_CHECKING:
    from sqlite_utils import Database

steps = Migrations("kontext_tui")


def _run(db: Database, sql: str) -> None:
    # Not executescript(): that commits the transaction the step runs in.
    for statement in sql.split(";;"):
        if statement.strip():
            db.execute(statement)


@steps(name="0001")
def _first(db: Database) -> None:
    _run(db, TABLES)
    _run(db, INDEXES)
    _run(db, COUNTERS)


TABLES = """
-- What one `add` or `run` asked for. A job may serve several: asking twice for the same edit makes no second job.
CREATE TABLE batches (
    id INTEGER PRIMARY KEY,
    created_at INTEGER NOT NULL,
    script_path ANY,
    script TEXT NOT NULL,              -- JSON, as parsed, with the command line's overrides in it
    output_folder ANY NOT NULL
) STRICT;;

CREATE TABLE batch_jobs (
    batch_id INTEGER NOT NULL REFERENCES batches(id) ON DELETE CASCADE,
    job_id INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
    PRIMARY KEY (batch_id, job_id)
) STRICT, WITHOUT ROWID;;

-- One picture through one script.
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY,
    key TEXT UNIQUE,                   -- what makes two jobs the same edit; NULL once superseded by `--again`
    name ANY NOT NULL,
    input_path ANY NOT NULL,
    input_sha256 TEXT,                 -- NULL where the input could not be read when it was added
    model TEXT NOT NULL,
    precision TEXT NOT NULL,
    runtime TEXT NOT NULL,
    output_size TEXT NOT NULL,
    output_folder ANY NOT NULL,
    output_path ANY NOT NULL,          -- of the last turn
    state TEXT NOT NULL CHECK (state IN
        ('scheduled', 'queued', 'running', 'done', 'failed', 'dead', 'cancelled', 'held')),
    priority INTEGER NOT NULL DEFAULT 0,
    run_after INTEGER,                 -- for `scheduled`, and for `failed`, which waits for its next attempt
    attempt INTEGER NOT NULL DEFAULT 0,
    max_attempts INTEGER NOT NULL DEFAULT 3,
    deaths INTEGER NOT NULL DEFAULT 0, -- workers that died under it
    claim_token TEXT,                  -- fences every write of a worker
    worker_id INTEGER REFERENCES workers(id),
    lease_until INTEGER,               -- ms since boot: no clock that anyone sets can end a lease
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    error_kind TEXT,
    error TEXT,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    finished_at INTEGER,
    updated_at INTEGER NOT NULL
) STRICT;;

CREATE TABLE turns (
    job_id INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
    turn INTEGER NOT NULL,             -- from 1
    from_turn INTEGER NOT NULL,        -- 0 is the input
    prompt TEXT NOT NULL,
    seed INTEGER NOT NULL,             -- chosen when added, so that a retry makes the same picture
    steps INTEGER NOT NULL,
    guidance REAL NOT NULL,
    context_refresh INTEGER NOT NULL DEFAULT 1,
    state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'running', 'saving', 'done')),
    step INTEGER NOT NULL DEFAULT 0,   -- finished steps
    step_ms TEXT,                      -- JSON list, one number a step
    seconds REAL,
    precision TEXT,                    -- what it really ran in
    runtime TEXT,
    artifact TEXT,                     -- hash of the engine or checkpoint, where one was used
    peak_bytes INTEGER,
    output_path ANY NOT NULL,
    output_sha256 TEXT,                -- set before the file gets its name, so that a restart can adopt it
    output_bytes INTEGER,
    attempt INTEGER,                   -- the attempt that finished it
    started_at INTEGER,
    finished_at INTEGER,
    review TEXT CHECK (review IN ('accepted', 'rejected')),
    reviewed_at INTEGER,
    reviewed_sha256 TEXT,              -- of the picture that was decided about: another one needs a new decision
    added_at INTEGER,                  -- for a redo or a branch asked for in review; NULL for the script's own turns
    redo_of INTEGER,                   -- the turn of this job that a redo makes anew
    PRIMARY KEY (job_id, turn)
) STRICT;;

-- The state inside an unfinished turn, written every few steps.
CREATE TABLE checkpoints (
    job_id INTEGER NOT NULL,
    turn INTEGER NOT NULL,
    step INTEGER NOT NULL,
    meta TEXT NOT NULL,                -- JSON: runtime, shapes and dtypes the state belongs to
    state BLOB NOT NULL,
    saved_at INTEGER NOT NULL,
    PRIMARY KEY (job_id, turn),
    FOREIGN KEY (job_id, turn) REFERENCES turns(job_id, turn) ON DELETE CASCADE
) STRICT;;

CREATE TABLE attempts (
    id INTEGER PRIMARY KEY,
    job_id INTEGER NOT NULL REFERENCES jobs(id) ON DELETE CASCADE,
    attempt INTEGER NOT NULL,
    claim_token TEXT NOT NULL,
    worker_id INTEGER REFERENCES workers(id),
    started_at INTEGER NOT NULL,
    finished_at INTEGER,
    outcome TEXT,                      -- done, dead, failed, cancelled, released, lost
    error_kind TEXT,
    error TEXT,
    traceback TEXT
) STRICT;;

-- Append-only: a job's story.
CREATE TABLE events (
    id INTEGER PRIMARY KEY,
    at INTEGER NOT NULL,
    what TEXT NOT NULL,
    job_id INTEGER REFERENCES jobs(id) ON DELETE CASCADE,
    turn INTEGER,
    attempt INTEGER,
    worker_id INTEGER,
    data TEXT                          -- JSON object
) STRICT;;

CREATE TABLE workers (
    id INTEGER PRIMARY KEY,
    host TEXT NOT NULL,
    boot_id TEXT NOT NULL,             -- with pid and start_ticks: one process, whatever pids are reused
    pid INTEGER NOT NULL,
    start_ticks INTEGER NOT NULL,
    device TEXT NOT NULL,
    version TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    heartbeat_at INTEGER NOT NULL,
    stopped_at INTEGER
) STRICT;;

-- The queue's own state, such as `paused`.
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL, updated_at INTEGER NOT NULL) STRICT;;

CREATE TABLE counts (state TEXT PRIMARY KEY, jobs INTEGER NOT NULL) STRICT
"""

INDEXES = """
-- The order of claims. Partial, so that it holds the waiting jobs alone and a claim reads its first row.
CREATE INDEX jobs_waiting ON jobs (priority DESC, id) WHERE state = 'queued';;
CREATE INDEX jobs_scheduled ON jobs (run_after) WHERE state IN ('scheduled', 'failed');;
CREATE INDEX jobs_running ON jobs (worker_id) WHERE state = 'running';;
CREATE INDEX jobs_state ON jobs (state, id);;
CREATE INDEX turns_output ON turns (output_path);;
CREATE INDEX turns_done ON turns (job_id, turn, review) WHERE state = 'done';;
CREATE INDEX turns_unreviewed ON turns (job_id, turn) WHERE state = 'done' AND review IS NULL;;
CREATE INDEX batch_jobs_job ON batch_jobs (job_id);;
CREATE INDEX attempts_job ON attempts (job_id);;
CREATE INDEX events_job ON events (job_id)
"""

# Counting a million rows by state takes 0.14 s; these rows answer at once (see `queue.counts`).
COUNTERS = """
CREATE TRIGGER jobs_count_insert AFTER INSERT ON jobs BEGIN
    INSERT INTO counts VALUES (new.state, 1) ON CONFLICT (state) DO UPDATE SET jobs = jobs + 1;
END;;
CREATE TRIGGER jobs_count_update AFTER UPDATE OF state ON jobs WHEN old.state IS NOT new.state BEGIN
    UPDATE counts SET jobs = jobs - 1 WHERE state = old.state;
    INSERT INTO counts VALUES (new.state, 1) ON CONFLICT (state) DO UPDATE SET jobs = jobs + 1;
END;;
CREATE TRIGGER jobs_count_delete AFTER DELETE ON jobs BEGIN
    UPDATE counts SET jobs = jobs - 1 WHERE state = old.state;
END
"""
