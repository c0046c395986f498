"""Supervised workers and what happens to them: killed, aborted, hung, broken GPUs, full disks, signals.

Real processes on a real queue, with the fast editor behind the real worker; what holds is read back from disk.
"""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, make_pictures, rows
from PIL import Image

from core.edit.images import sha256
from core.jobs import claims, control
from core.jobs.database import connect
from core.jobs.process import ProcessId, is_gone

SCRIPT = "input: photos\noutput: edited\nmodel: kontext-tiny\nseed: 3\nsteps: 4\nturns: [make it night, add fog]\n"


class Night:
    """A folder with pictures, a script and a queue, and commands that run on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.database, self.log = folder, folder / "jobs.db", folder / "log"
        (folder / "count").mkdir()
        (folder / "edits.yaml").write_text(SCRIPT)
        self.env = {
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
            "KONTEXT_TUI_STUDIO": "fast_worker:FastStudio",
            "KONTEXT_TEST_LOG": str(self.log),
            "KONTEXT_TUI_FAILPOINT_COUNT": str(folder / "count"),
        }

    def start(self, *arguments: object, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "kontext_tui", *map(str, arguments)],
            cwd=self.folder, env={**self.env, **environment}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *arguments: object, **environment: str) -> tuple[int, str]:
        process = self.start(*arguments, **environment)
        _, err = process.communicate(timeout=120)
        assert "Traceback" not in err, err
        return process.returncode, err

    def states(self) -> dict[str, int]:
        try:
            return dict(rows(self.database, "SELECT state, count(*) FROM jobs GROUP BY state"))
        except sqlite3.OperationalError:
            return {}  # its tables are not made yet

    def computed(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def wait_for(self, condition: Callable[[], Any], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "what was waited for never came"
            time.sleep(0.02)

    def child_pids(self) -> list[int]:
        found = rows(self.database, "SELECT host, boot_id, pid, start_ticks FROM workers WHERE stopped_at IS NULL")
        return [row[2] for row in found if not is_gone(ProcessId(*row))]

    def all_results_stand(self) -> None:
        """Every done turn's file is there, loads, and has its hash; nothing half-written lies about."""
        for path, digest in rows(self.database, "SELECT output_path, output_sha256 FROM turns WHERE state = 'done'"):
            assert sha256(Path(path)) == digest
            with Image.open(path) as image:
                image.load()
        assert not list(self.folder.rglob(".*.part"))
        assert rows(self.database, "PRAGMA integrity_check") == [("ok",)]


@pytest.fixture
def night(tmp_path: Path) -> Night:
    make_pictures(tmp_path / "photos", 3)
    return Night(tmp_path)


@pytest.mark.parametrize(
    "point", ["after_claim", "mid_step", "before_rename", "after_rename", "before_commit_done", "after_commit"]
)
def test_a_worker_killed_anywhere_is_replaced_and_the_job_goes_on(night, point):
    code, _ = night.run("run", "edits.yaml", KONTEXT_TUI_FAILPOINT=f"{point}:kill:2")
    assert code == 0
    assert night.states() == {"done": 3}
    night.all_results_stand()
    # The turn at work is computed once more, and the one being saved, unless its file had its name already.
    assert len(night.computed()) in ((6, 7, 8) if point in ("mid_step", "before_rename") else (6, 7))


def test_a_job_that_kills_its_workers_is_put_aside_and_the_others_are_done(night):
    with Image.open(night.folder / "photos" / "picture-1.png") as poison:
        digest = hashlib.sha256(poison.convert("RGB").tobytes()).hexdigest()[:8]
    code, err = night.run("run", "edits.yaml", KONTEXT_TEST_ABORT_ON=digest)
    assert code == 1
    assert night.states() == {"done": 2, "dead": 1}
    assert rows(night.database, "SELECT name, error_kind FROM jobs WHERE state = 'dead'") == [
        ("picture-1.png", "killed_worker")
    ]
    assert "2 workers died" in err
    assert rows(night.database, "SELECT count(*) FROM workers")[0][0] <= 4


def test_a_hung_worker_is_ended_and_a_job_that_hangs_twice_is_dead(night):
    code, err = night.run(
        "run", "edits.yaml", "--input", "photos/picture-0.png",
        KONTEXT_TUI_FAILPOINT="mid_step:hang", KONTEXT_TUI_STEP_SECONDS="1", KONTEXT_TUI_GRACE_SECONDS="1",
    )  # fmt: skip
    assert code == 1
    assert rows(night.database, "SELECT state, error_kind FROM jobs") == [("dead", "timeout")]
    assert "no step for" in err


def test_a_broken_gpu_context_gets_a_new_process(night):
    code, _ = night.run("run", "edits.yaml", KONTEXT_TUI_FAILPOINT="mid_step:cuda:3")
    assert code == 0
    assert night.states() == {"done": 3}
    assert rows(night.database, "SELECT count(*) FROM workers") == [(2,)]
    assert rows(night.database, "SELECT error_kind FROM attempts WHERE outcome = 'failed'") == [("cuda",)]


def test_three_gpu_failures_pause_the_queue_and_say_so(night):
    process = night.start("run", "edits.yaml", KONTEXT_TUI_FAILPOINT="mid_step:cuda")
    night.wait_for(lambda: night.database.exists() and _paused(night))
    assert "3 times" in _paused(night)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
    assert "running" not in night.states()


def test_out_of_memory_with_nothing_left_to_give_up_is_dead_with_its_traceback(night):
    code, _ = night.run("run", "edits.yaml", KONTEXT_TUI_FAILPOINT="mid_step:oom:1")
    assert code == 1
    assert night.states() == {"done": 2, "dead": 1}
    [(kind, trace)] = rows(night.database, "SELECT error_kind, traceback FROM attempts WHERE outcome = 'dead'")
    assert kind == "out_of_memory"
    assert "RuntimeError" in trace


def test_an_unknown_error_waits_and_is_tried_again(night):
    process = night.start("run", "edits.yaml", KONTEXT_TUI_FAILPOINT="mid_step:raise:1")
    night.wait_for(lambda: night.database.exists() and night.states().get("done") == 2)
    [(state, kind, wait)] = rows(
        night.database, "SELECT state, error_kind, run_after - updated_at FROM jobs WHERE state <> 'done'"
    )
    assert (state, kind) == ("failed", "error")
    assert 7_000 <= wait <= 15_100
    conn = connect(night.database)
    control.retry(conn, [row[0] for row in rows(night.database, "SELECT id FROM jobs WHERE state = 'failed'")])
    assert process.wait(60) == 0
    assert night.states() == {"done": 3}


def test_a_full_disk_pauses_the_queue_and_room_resumes_it(night):
    process = night.start("run", "edits.yaml", KONTEXT_TUI_FAILPOINT="before_rename:nospace:2")
    assert process.wait(60) == 0  # there is room: only the failpoint said there was none
    assert night.states() == {"done": 3}
    words = [row[0] for row in rows(night.database, "SELECT what FROM events WHERE what IN ('paused', 'resumed')")]
    assert words == ["paused", "resumed"]
    night.all_results_stand()


def test_a_queue_that_cannot_be_written_is_tried_again_and_no_job_is_blamed(night):
    """No file may grow: the queue's disk is full, and nothing can be written down about it."""
    make_pictures(night.folder / "photos", 1, prefix="large", colour="navy")
    assert night.run("add", "edits.yaml")[0] == 0
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    process = night.start("work", "--drain", KONTEXT_TEST_STEP_MS="20")
    night.wait_for(lambda: len(night.computed()) >= 2)
    for pid in (process.pid, *night.child_pids()):
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    assert process.stderr is not None
    while "refuses" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(1.5)  # new workers fail too
    assert process.poll() is None
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (hard, hard))
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert night.states() == {"done": 4}
    assert rows(night.database, "SELECT max(deaths) FROM jobs") == [(0,)]
    night.all_results_stand()


def test_a_locked_queue_is_waited_for_and_no_job_suffers(night):
    environment = {"KONTEXT_TUI_BUSY_SECONDS": "0.4", "KONTEXT_TUI_STEP_SECONDS": "1.5", "KONTEXT_TEST_STEP_MS": "50"}
    process = night.start("run", "edits.yaml", **environment)
    night.wait_for(lambda: len(night.computed()) >= 1)
    with sqlite3.connect(night.database, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        time.sleep(5)  # longer than a hung step may take, and ten times the patience of a write
        assert process.poll() is None
        other.execute("ROLLBACK")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "locked by another program; waiting" in err
    assert "Traceback" not in err
    assert night.states() == {"done": 3}
    assert len(night.computed()) == 6
    assert rows(night.database, "SELECT count(*), max(attempt) FROM jobs") == [(3, 1)]
    assert rows(night.database, "SELECT count(*) FROM workers") == [(1,)]


def test_a_command_says_that_the_queue_is_locked(night):
    assert night.run("add", "edits.yaml")[0] == 0
    with sqlite3.connect(night.database, isolation_level=None) as other:
        other.execute("BEGIN EXCLUSIVE")
        code, err = night.run("hold", "1", KONTEXT_TUI_BUSY_SECONDS="0.2")
        assert code == 3
        assert len(err.splitlines()) == 1
        assert "locked by another program" in err
        assert night.run("status")[0] == 0  # readers never wait
        other.execute("ROLLBACK")
    assert night.run("hold", "1")[0] == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_one_signal_ends_after_the_step_and_nothing_stays_running(night, number, code):
    process = night.start("run", "edits.yaml", "--steps", "400", KONTEXT_TEST_STEP_MS="20")
    night.wait_for(lambda: night.database.exists() and night.states().get("running"))
    night.wait_for(lambda: night.computed())
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code
    assert set(night.states()) == {"queued"}
    assert night.child_pids() == []
    assert "left: 3 queued" in err
    # Nothing is lost: what was computed of the turn is kept after its last step.
    [(saved, computed)] = rows(
        night.database, "SELECT c.step, t.step FROM checkpoints c JOIN turns t USING (job_id, turn)"
    )
    assert saved >= max(computed, 1)


def test_told_to_stop_in_a_turns_last_step_it_keeps_the_turn_and_begins_no_other(night):
    process = night.start("run", "edits.yaml", "--steps", "1", KONTEXT_TEST_STEP_MS="2000")
    night.wait_for(lambda: night.database.exists() and night.computed())
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 143, err
    assert rows(night.database, "SELECT count(*) FROM turns WHERE state = 'done'") == [(1,)]
    assert len(night.computed()) == 1
    night.all_results_stand()


def test_the_second_signal_is_immediate(night):
    process = night.start("run", "edits.yaml", "--steps", "4", KONTEXT_TEST_STEP_MS="60000")
    night.wait_for(lambda: night.database.exists() and night.computed())
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130
    assert set(night.states()) == {"queued"}
    assert night.child_pids() == []


def test_a_killed_supervisor_takes_its_worker_with_it_and_the_next_one_goes_on(night):
    process = night.start("run", "edits.yaml", KONTEXT_TEST_STEP_MS="50")
    night.wait_for(lambda: night.database.exists() and len(night.computed()) >= 2)
    process.kill()
    process.wait()
    night.wait_for(lambda: night.child_pids() == [])
    assert night.run("run", "edits.yaml")[0] == 0
    assert night.states() == {"done": 3}
    assert len(night.computed()) <= 7
    night.all_results_stand()


def test_a_stopped_worker_that_wakes_up_late_changes_nothing(night):
    """A is stopped past its lease, B finishes its job; A wakes up, drops its result and does no harm."""
    night.run("add", "edits.yaml", "--input", "photos/picture-0.png")
    worker = subprocess.Popen(
        [sys.executable, ROOT / "tests" / "fast_worker.py", night.database, night.log],
        env={**night.env, "KONTEXT_TEST_STEP_MS": "200"},
    )
    night.wait_for(lambda: night.computed())
    worker.send_signal(signal.SIGSTOP)
    conn = connect(night.database)
    conn.execute("UPDATE jobs SET lease_until = 0")  # as if its 30 s were over
    assert night.run("work", "--drain")[0] == 0
    before = rows(night.database, "SELECT * FROM turns")
    worker.send_signal(signal.SIGCONT)
    assert worker.wait(30) != 0
    assert rows(night.database, "SELECT * FROM turns") == before
    assert night.states() == {"done": 1}
    night.all_results_stand()


def test_leases_of_living_workers_are_renewed_and_no_clock_ends_them(night, monkeypatch):
    night.run("add", "edits.yaml")
    conn = connect(night.database)
    worker = claims.register_worker(conn, "test", "0")
    claims.claim(conn, worker)
    monkeypatch.setattr(time, "time_ns", lambda: 0)  # the wall clock jumps to 1970
    assert claims.rescue(conn) == []
    conn.execute("UPDATE jobs SET lease_until = 5 WHERE state = 'running'")
    claims.renew(conn, [worker])
    assert claims.rescue(conn) == []
    conn.execute("UPDATE jobs SET lease_until = 5 WHERE state = 'running'")
    assert len(claims.rescue(conn)) == 1


def test_two_workers_of_one_gpu_are_refused(night, monkeypatch, tmp_path):
    from core.errors import UnavailableError
    from core.jobs.supervisor import device_lock

    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    code = (
        "import os, sys; os.environ['XDG_RUNTIME_DIR'] = sys.argv[1]\n"
        "from core.jobs.supervisor import device_lock\n"
        "with device_lock('cuda:0'): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UnavailableError, match="cuda:0 is at work"), device_lock("cuda:0"):
        pass
    with device_lock("cuda:1"):
        pass
    holder.kill()
    holder.wait()
    with device_lock("cuda:0"):
        pass


def _paused(night: Night) -> str | None:
    return control.paused(connect(night.database))


@pytest.mark.parametrize(
    ("device", "name", "visible"), [("cuda:2", "cuda:0", "2"), ("cuda:0", "cuda:0", "0"), ("cpu", "cpu", "")]
)
def test_a_worker_sees_its_own_device_and_no_gpu_beside(device, name, visible, monkeypatch):
    from core.edit.runtimes.trt_api import current_gpu
    from core.jobs.supervisor import seen_as

    assert seen_as(device) == (name, {"CUDA_VISIBLE_DEVICES": visible})
    if device == "cpu":  # and nothing is chosen for a GPU then
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert current_gpu() is None
