"""Opening the queue: upgrades, refusals, and what a second connection sees."""

from __future__ import annotations

import multiprocessing
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from conftest import ROOT, rows

from core.errors import DatabaseError
from core.jobs import database, schema
from core.jobs.database import checkpoint, connect, path_from_db, path_to_db, snapshot, transaction
from core.jobs.filesystem import network_file_system


def test_a_fresh_queue_is_in_wal_with_full_sync_and_foreign_keys(tmp_path):
    conn = connect(tmp_path / "jobs.db")
    values = [
        conn.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous", "foreign_keys")
    ]
    assert values == ["wal", 2, 1]


def _open_at(path: str, start: float) -> None:
    import time

    time.sleep(max(0.0, start - time.time()))
    connect(Path(path)).close()


def test_many_programs_may_make_it_at_once(tmp_path):
    import time

    start = time.time() + 1.5
    with multiprocessing.get_context("spawn").Pool(6) as pool:
        pool.starmap(_open_at, [(str(tmp_path / "jobs.db"), start)] * 6)
    assert rows(tmp_path / "jobs.db", "PRAGMA integrity_check") == [("ok",)]
    assert rows(tmp_path / "jobs.db", "SELECT name FROM _sqlite_migrations") == [("0001",)]


def test_a_queue_that_another_program_makes_while_it_is_looked_at_is_no_foreign_one(tmp_path, monkeypatch):
    """Version, owner and tables are of one moment: the other's writes come after all three or before."""
    path, own_open, others = tmp_path / "jobs.db", database._open, []

    def other() -> None:
        connect(path).close()

    def seen(statement: str) -> None:
        if "application_id" in statement and not others:
            others.append(threading.Thread(target=other))
            others[0].start()
            others[0].join(0.5)  # it gets to its commit, and waits there

    def traced(target):
        conn = own_open(target)
        if not others:
            conn.set_trace_callback(seen)
        return conn

    monkeypatch.setattr(database, "_open", traced)
    connect(path).close()
    others[0].join(20)
    assert not list(tmp_path.glob("*before-version*"))
    assert rows(path, "SELECT name FROM _sqlite_migrations") == [("0001",)]


def test_an_older_queue_is_backed_up_and_upgraded_and_a_failing_step_changes_nothing(tmp_path, monkeypatch):
    path = tmp_path / "jobs.db"
    conn = connect(path)
    conn.execute("INSERT INTO settings VALUES ('kept', 'yes', 0)")
    conn.close()
    monkeypatch.setattr(database, "VERSION", 2)
    monkeypatch.setattr(schema.steps, "_migrations", list(schema.steps._migrations))

    @schema.steps(name="0002")
    def fails(db):
        db.execute("CREATE TABLE half (x)")
        raise sqlite3.OperationalError("the power went")

    with pytest.raises(DatabaseError, match="the power went"):
        connect(path)
    assert rows(path, "SELECT name FROM sqlite_master WHERE name = 'half'") == []
    assert rows(path, "PRAGMA user_version") == [(1,)]
    schema.steps._migrations.pop()

    @schema.steps(name="0002")
    def works(db):
        db.execute("CREATE TABLE more (x)")

    connect(path).close()
    assert rows(path, "SELECT value FROM settings WHERE key = 'kept'") == [("yes",)]
    assert rows(path, "PRAGMA user_version") == [(2,)]
    backup = tmp_path / "jobs.db.before-version-2"
    assert rows(backup, "PRAGMA user_version") == [(1,)]
    assert rows(backup, "SELECT value FROM settings WHERE key = 'kept'") == [("yes",)]


def test_a_transaction_is_whole_or_nothing(tmp_path):
    conn = connect(tmp_path / "jobs.db")
    with pytest.raises(ZeroDivisionError), transaction(conn):
        conn.execute("INSERT INTO settings VALUES ('a', '1', 0)")
        raise ZeroDivisionError
    assert rows(tmp_path / "jobs.db", "SELECT * FROM settings WHERE key = 'a'") == []


def test_an_enqueuer_killed_at_any_moment_leaves_all_or_nothing(tmp_path):
    from conftest import make_pictures

    make_pictures(tmp_path / "photos", 200)
    (tmp_path / "edits.yaml").write_text("input: photos\nmodel: kontext-tiny\nturns: [make it night]\n")
    connect(tmp_path / "jobs.db").close()
    code = (
        "import os, sys, threading, time; sys.argv = ['kontext-tui', 'add', 'edits.yaml']\n"
        "threading.Thread(target=lambda: (time.sleep({delay}), os.kill(os.getpid(), 9)), daemon=True).start()\n"
        "from kontext_tui.__main__ import main; main()"
    )
    for round_ in range(12):
        subprocess.run(
            [sys.executable, "-c", code.format(delay=0.15 + round_ * 0.03)],
            cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=60,
        )  # fmt: skip
        [(jobs, turns)] = rows(tmp_path / "jobs.db", "SELECT (SELECT count(*) FROM jobs), count(*) FROM turns")
        assert (jobs, turns) in ((0, 0), (200, 200))
    assert rows(tmp_path / "jobs.db", "PRAGMA integrity_check") == [("ok",)]


def test_network_disks_are_known_by_their_mount(tmp_path):
    mounts = (
        "/dev/sda1 / ext4 rw 0 0\nserver:/home /home nfs4 rw 0 0\n//nas/pictures /mnt/my\\040nas cifs rw 0 0\n"
        "tmpfs /home/local tmpfs rw 0 0\n"
    )
    assert network_file_system(Path("/home/me/jobs.db"), mounts) == "nfs4"
    assert network_file_system(Path("/mnt/my nas/jobs.db"), mounts) == "cifs"
    assert network_file_system(Path("/home/local/jobs.db"), mounts) is None
    assert network_file_system(Path("/var/jobs.db"), mounts) is None
    assert network_file_system(tmp_path) is None


def test_a_queue_on_a_network_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(database, "network_file_system", lambda path: "nfs4")
    with pytest.raises(DatabaseError, match=r"network disk \(nfs4\)"):
        connect(tmp_path / "jobs.db")
    assert not (tmp_path / "jobs.db").exists()


@pytest.mark.parametrize("name", ["photos/a.png", "Füchse/写真.jpg", "caf\udce9.png"])
def test_any_path_survives_the_database(name):
    stored = path_to_db(name)
    conn = sqlite3.connect(":memory:")
    assert path_from_db(conn.execute("SELECT ?", (stored,)).fetchone()[0]) == name


def test_only_a_checkpoint_copies_the_log_into_the_file(tmp_path):
    """Readers and commands leave the log alone: two processes that copy at once are what SQLite's bug needs."""
    path, log = tmp_path / "jobs.db", tmp_path / "jobs.db-wal"
    with closing(connect(path)) as one, closing(connect(path)) as other:
        checkpoint(one)
        before = path.stat().st_size

        def write(conn):
            with transaction(conn):
                conn.execute(
                    "INSERT INTO settings (key, value, updated_at) VALUES (hex(randomblob(9)), ?, 0)", ["x" * 40_000]
                )

        for _ in range(150):
            write(other)
        assert path.stat().st_size == before  # SQLite's own habit is to copy at 4 MB
        grown = log.stat().st_size
        assert grown > 6_000_000
        checkpoint(one)
        assert path.stat().st_size > before + 6_000_000
        for _ in range(20):
            write(other)
        assert log.stat().st_size == grown  # begun again at its start


def test_a_reader_that_never_ends_does_not_keep_writers_waiting(tmp_path):
    path = tmp_path / "jobs.db"
    with closing(connect(path)) as reader, closing(connect(path)) as writer:
        with snapshot(reader):
            assert reader.execute("SELECT count(*) FROM settings").fetchone()[0] == 0
            began = time.monotonic()
            for number in range(50):
                with transaction(writer):
                    writer.execute("INSERT INTO settings (key, value, updated_at) VALUES (?, 1, 0)", [str(number)])
                checkpoint(writer)
            assert time.monotonic() - began < 5
            assert reader.execute("SELECT count(*) FROM settings").fetchone()[0] == 0
        assert reader.execute("SELECT count(*) FROM settings").fetchone()[0] == 50
