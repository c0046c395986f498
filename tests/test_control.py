"""Steering the queue from another shell: pause, hold, priority, start times, prune, backup."""

from __future__ import annotations

import sqlite3
import time
from datetime import datetime
from pathlib import Path

import pytest
from conftest import make_pictures, rows
from test_cli import cli
from test_queue import db, enqueue, finish, worker_id

from core.errors import UsageError
from core.jobs import claims, control
from core.jobs.database import connect
from core.jobs.records import get_job
from kontext_tui.cli.options import start_time

__all__ = ["cli", "db", "worker_id"]


def test_a_pause_is_strict_and_survives_restarts(cli, tmp_path):
    cli("add", "edits.yaml")
    assert cli("pause", "--reason", "the disk is full")[0] == 0
    with_new_connection = connect(tmp_path / "jobs.db")
    worker = claims.register_worker(with_new_connection, "test", "0")
    assert claims.claim(with_new_connection, worker) is None
    assert "paused: the disk is full" in cli("status")[1]
    assert cli("resume")[1] == "resumed\n"
    assert claims.claim(with_new_connection, worker) is not None
    assert cli("resume")[1] == "was not paused\n"


def test_held_jobs_are_skipped_until_released(db, tmp_path, worker_id):
    ids = list(enqueue(db, tmp_path).jobs)
    assert control.hold(db, ids[:2]) == dict.fromkeys(ids[:2], "queued")
    assert claims.claim(db, worker_id).job.id == ids[2]
    assert claims.claim(db, worker_id) is None
    control.unhold(db, ids[:1])
    assert claims.claim(db, worker_id).job.id == ids[0]
    assert get_job(db, ids[1]).state == "held"


def test_one_wrong_number_changes_nothing(db, tmp_path):
    ids = list(enqueue(db, tmp_path).jobs)
    for change in (control.hold, control.cancel, control.retry, control.unhold):
        with pytest.raises(UsageError, match="no job 99"):
            change(db, [ids[0], 99])
    assert {row[0] for row in rows(tmp_path / "jobs.db", "SELECT state FROM jobs")} == {"queued"}


def test_priority_moves_a_job_to_the_front_or_the_back(cli, tmp_path):
    cli("add", "edits.yaml")
    assert cli("priority", 3, "--to", 5)[1] == "job 3: priority 5\n"
    assert cli("priority", 1, "--to", "-1")[0] == 0
    conn = connect(tmp_path / "jobs.db")
    worker = claims.register_worker(conn, "test", "0")
    assert [claims.claim(conn, worker).job.id for _ in range(3)] == [3, 2, 1]


def test_a_job_with_a_start_time_waits_for_it(cli, tmp_path):
    assert ", to start from " in cli("add", "edits.yaml", "--after", "1s")[1]
    conn = connect(tmp_path / "jobs.db")
    worker = claims.register_worker(conn, "test", "0")
    assert claims.claim(conn, worker) is None
    assert "scheduled  3" in cli("status")[1]
    end = time.monotonic() + 20
    while (claim := claims.claim(conn, worker)) is None:
        assert time.monotonic() < end
        time.sleep(0.05)
    assert claim.job.id == 1


def test_start_times_are_read_as_people_write_them():
    now = time.time() * 1000
    assert start_time(None, "1h30m") == pytest.approx(now + 5_400_000, abs=2000)
    then = datetime.fromtimestamp(start_time("22:05", None) / 1000)
    assert (then.hour, then.minute, then.second) == (22, 5, 0)
    assert 0 < then.timestamp() * 1000 - now <= 24 * 3600 * 1000
    for at, after in (("25:00", None), ("ten", None), (None, ""), (None, "soon"), (None, "3"), ("22:00", "1h")):
        if at or after:
            with pytest.raises(UsageError):
                start_time(at, after)


def test_prune_forgets_ended_jobs_and_leaves_files_alone(cli, db, tmp_path, worker_id):
    ids = list(enqueue(db, tmp_path).jobs)
    finish(db, claims.claim(db, worker_id))
    result = Path(get_job(db, ids[0]).output_path)
    result.parent.mkdir(exist_ok=True)
    result.write_bytes(b"a result")
    assert control.prune(db, days=1) == 0
    assert control.prune(db, days=0) in (0, 1)
    time.sleep(0.01)
    control.prune(db, days=0)
    assert [row[0] for row in rows(tmp_path / "jobs.db", "SELECT id FROM jobs ORDER BY id")] == ids[1:]
    assert rows(tmp_path / "jobs.db", f"SELECT count(*) FROM turns WHERE job_id = {ids[0]}") == [(0,)]
    assert rows(tmp_path / "jobs.db", f"SELECT count(*) FROM events WHERE job_id = {ids[0]}") == [(0,)]
    assert result.read_bytes() == b"a result"
    assert cli("prune", "--state", "queued")[0] == 2


def test_a_backup_of_a_queue_at_work_is_whole_and_never_replaces_a_file(cli, tmp_path):
    make_pictures(tmp_path / "photos", 50)
    cli("add", "edits.yaml")
    held_open = connect(tmp_path / "jobs.db")  # its commits are still in the -wal file
    held_open.execute("UPDATE jobs SET priority = 9")
    assert cli("backup", "copy.db")[0] == 0
    assert rows(tmp_path / "copy.db", "SELECT count(*), min(priority) FROM jobs") == [(50, 9)]
    assert not (tmp_path / "copy.db-wal").exists()
    code, _, err = cli("backup", "copy.db")
    assert code == 2
    assert "there already" in err
    assert cli("status", "--db", "copy.db")[0] == 0
    code, _, err = cli("backup", "no/such/copy.db")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "no/such/copy.db" in err


def test_a_damaged_queue_is_not_backed_up_as_if_it_were_whole(cli, tmp_path):
    make_pictures(tmp_path / "photos", 50)
    cli("add", "edits.yaml")
    with sqlite3.connect(tmp_path / "jobs.db") as conn:
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        root = conn.execute("SELECT rootpage FROM sqlite_master WHERE name = 'jobs_state'").fetchone()[0]
        size = conn.execute("PRAGMA page_size").fetchone()[0]
    conn.close()
    with (tmp_path / "jobs.db").open("r+b") as file:
        file.seek((root - 1) * size)
        file.write(b"\xff" * 200)
    code, _, err = cli("backup", "copy.db")
    assert code == 3
    assert "damaged" in err
    assert not list(tmp_path.glob("*copy.db*"))
    code, out, _ = cli("doctor")
    assert code == 1
    [line] = [line for line in out.splitlines() if line.startswith("!!")]
    assert "backup" in line
    assert len(line) < 500
