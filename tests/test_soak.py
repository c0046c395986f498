"""Minutes of random faults on a night's work: `make soak`; KONTEXT_SOAK_SECONDS shortens it."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import time
from collections import Counter

import psutil
import pytest
from conftest import make_pictures, rows
from test_supervisor import Night

JOBS, TURNS = 300, 3


@pytest.mark.soak
def test_whatever_happens_every_picture_is_done_once_or_has_a_reason(tmp_path):
    seconds = float(os.environ.get("KONTEXT_SOAK_SECONDS", "300"))
    seed = int(os.environ.get("KONTEXT_SOAK_SEED", str(time.time_ns() % 10_000)))
    print(f"soak of {seconds:.0f} s, seed {seed}")
    chance = random.Random(seed)
    make_pictures(tmp_path / "photos", JOBS)
    night = Night(tmp_path)
    script = (tmp_path / "edits.yaml").read_text().replace("add fog]", "add fog, make it warmer]")
    (tmp_path / "edits.yaml").write_text(script)
    step_ms = str(seconds * 1000 / (JOBS * TURNS * 4) / 2)  # half the time is for the faults
    environment = {
        "KONTEXT_TEST_STEP_MS": step_ms,
        "KONTEXT_TUI_CHECKPOINT_SECONDS": "0.2",
        # Every 150th result meets a full disk, and some steps an error nobody knows.
        "KONTEXT_TUI_FAILPOINT": ",".join(
            [*(f"before_rename:nospace:{nth}" for nth in range(150, 1200, 150)), "mid_step:raise:700"]
        ),
    }
    assert night.run("add", "edits.yaml")[0] == 0

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*_command(), "work", "--quiet"], cwd=tmp_path, env={**night.env, **environment},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    faults: Counter[str] = Counter()
    supervisors = [start(), start()]
    end = time.monotonic() + seconds
    while time.monotonic() < end and night.states().get("done", 0) < JOBS:
        time.sleep(chance.uniform(0.5, 3))
        fault = chance.choice(["kill worker", "kill supervisor", "stop worker", "lock", "interrupt", "reader"])
        faults[fault] += 1
        index = chance.randrange(len(supervisors))
        if fault in ("kill worker", "stop worker"):
            for child in _children(supervisors[index]):
                child.send_signal(signal.SIGKILL if fault == "kill worker" else signal.SIGSTOP)
                if fault == "stop worker":
                    time.sleep(3)
                    child.send_signal(signal.SIGCONT)
        elif fault in ("kill supervisor", "interrupt"):
            supervisors[index].send_signal(signal.SIGKILL if fault == "kill supervisor" else signal.SIGTERM)
            supervisors[index].wait(60)
            supervisors[index] = start()
        elif fault == "lock":
            conn = sqlite3.connect(night.database, timeout=15, isolation_level=None)
            conn.execute("BEGIN EXCLUSIVE")
            time.sleep(1)
            conn.execute("ROLLBACK")
            conn.close()
        else:
            reader = subprocess.Popen(
                [*_command(), "list", "--json"], cwd=tmp_path, env=night.env, stdout=subprocess.PIPE
            )
            time.sleep(0.2)
            reader.kill()
            reader.communicate()
    for supervisor in supervisors:
        supervisor.terminate()
        supervisor.wait(60)
    print(dict(faults))
    for _ in range(3):  # whoever was put aside for its workers' deaths had bad luck here: the faults are ours
        assert night.run("work", "--drain", "--quiet")[0] == 0
        subprocess.run([*_command(), "retry", "--dead"], cwd=tmp_path, env=night.env, capture_output=True)
    assert night.states() == {"done": JOBS}
    night.all_results_stand()
    assert rows(night.database, "SELECT count(*) FROM events WHERE what = 'paused'")[0][0], "no disk was full"
    # Turns are computed again only by an attempt that follows one which ended in the middle of them: of the turn at
    # work, and of the one before it that was being saved.
    attempts = rows(night.database, "SELECT count(*) FROM attempts")[0][0]
    again = len(night.computed()) - JOBS * TURNS
    print(f"{again} turns computed again in {attempts - JOBS} attempts after the first")
    assert 0 <= again <= 2 * (attempts - JOBS)
    times = Counter(line for line in night.computed())
    attempts = rows(
        night.database, "SELECT max(attempts) FROM (SELECT count(*) AS attempts FROM attempts GROUP BY job_id)"
    )
    assert max(times.values()) <= attempts[0][0]
    assert rows(night.database, "SELECT count(*) FROM turns WHERE state <> 'done'") == [(0,)]


def _command() -> list[str]:
    import sys

    return [sys.executable, "-m", "kontext_tui"]


def _children(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    try:
        return psutil.Process(process.pid).children()
    except psutil.Error:
        return []
