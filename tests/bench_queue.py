"""How fast the queue is and what it loses: `make bench-queue`, or `python tests/bench_queue.py --small`.

Claims, adds, reads and a drain by eight processes on a real `jobs.db` with FULL sync; huey and litequeue beside it,
in the same run, on the same disk. What each loses is seen by killing a real worker with SIGKILL in mid-task.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from core.edit.models import find_spec
from core.jobs import checkpoints, claims, queue, records, turn_states
from core.jobs.database import connect
from core.script import Script
from quant.machine import machine

CLAIMS = 2000
"""Measured a size."""
WORKERS = 8


def new_jobs(first: int, count: int) -> list[queue.NewJob]:
    turn = queue.NewTurn(1, 0, "Make it a sunset", 7, 28, 2.5)
    return [
        queue.NewJob(f"key-{i}", f"IMG_{i:07}.jpg", f"/photos/IMG_{i:07}.jpg", f"{i:064x}", (turn,))
        for i in range(first, first + count)
    ]


def fill(conn: sqlite3.Connection, folder: Path, count: int, *, chunk: int = 100_000) -> float:
    """Add jobs through the one door there is; returns seconds of adding alone."""
    script = Script.model_validate(
        {"input": "photos", "output": str(folder / "edited"), "model": "kontext-tiny", "turns": ["Make it a sunset"]}
    )
    spent, start = 0.0, records_count(conn)
    for first in range(start, start + count, chunk):
        jobs = new_jobs(first, min(chunk, start + count - first))
        began = time.perf_counter()
        queue.add(conn, script, find_spec("kontext-tiny"), jobs)
        spent += time.perf_counter() - began
    return spent


def records_count(conn: sqlite3.Connection) -> int:
    return sum(records.counts(conn).values())


def timed(function: Callable[[], object], count: int) -> list[float]:
    """Milliseconds of each call."""
    times = []
    for _ in range(count):
        began = time.perf_counter()
        function()
        times.append((time.perf_counter() - began) * 1000)
    return times


def summary(times: list[float]) -> dict[str, float]:
    return {
        "p50_ms": round(median(times), 4),
        "p99_ms": round(quantiles(times, n=100)[98], 4),
        "per_second": round(1000 * len(times) / sum(times)),
    }


def bench_claims(conn: sqlite3.Connection, count: int) -> dict[str, float]:
    worker = claims.register_worker(conn, "bench", "0")
    return summary(timed(lambda: claims.claim(conn, worker), count))


def bench_reads(conn: sqlite3.Connection, path: Path) -> dict[str, float]:
    """Milliseconds, medians; the commands with the start of Python in it."""
    found = {
        "status": median(timed(lambda: records.counts(conn), 20)),
        "list": median(timed(lambda: [records.get_turns(conn, j.id) for j in records.list_jobs(conn)], 20)),
        "list --state queued": median(timed(lambda: records.list_jobs(conn, states=("queued",)), 20)),
    }
    for name in ("status", "list"):
        words = [sys.executable, "-m", "kontext_tui", name, "--db", str(path)]
        found[f"kontext-tui {name}"] = median(
            timed(lambda words=words: subprocess.run(words, check=True, capture_output=True), 5)  # type: ignore[misc]
        )
    return {name: round(ms, 2) for name, ms in found.items()}


def bench_checkpoint(conn: sqlite3.Connection, count: int = 50) -> dict[str, float]:
    """What keeping a megapixel's latents costs: [1, 4096, 64] in BF16, every `checkpoints.SECONDS`."""
    claim = claims.claim(conn, claims.register_worker(conn, "bench", "0"))
    assert claim is not None
    state = os.urandom(4096 * 64 * 2)
    ms = median(timed(lambda: turn_states.save_checkpoint(conn, claim, 1, 14, "{}", state), count))
    return {"p50_ms": round(ms, 2), "share_of_time": round(ms / 1000 / checkpoints.SECONDS, 6)}


def plan_of_claim(conn: sqlite3.Connection) -> list[str]:
    return [row["detail"] for row in conn.execute(f"EXPLAIN QUERY PLAN {claims.NEXT_WAITING}")]


def bench_drain(folder: Path, count: int) -> dict[str, Any]:
    """WORKERS processes claim and end jobs until none is left."""
    path = folder / "drain.db"
    with closing(connect(path)) as conn:
        fill(conn, folder, count)
        conn.execute("UPDATE turns SET state = 'done'")  # so that a claimed job may be ended
    words = [sys.executable, __file__, "--drain", str(path)]
    workers = [
        subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(WORKERS)
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    began = time.perf_counter()
    for worker in workers:  # all start at once: starting Python takes longer than some of these drains
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    taken = [json.loads(worker.communicate()[0]) for worker in workers]
    seconds = time.perf_counter() - began
    times = Counter(job for each in taken for job in each)
    with closing(connect(path)) as conn:
        done = records.counts(conn)["done"]
    shares = sorted(len(each) for each in taken)
    return {
        "jobs": count, "done": done, "duplicates": sum(n - 1 for n in times.values()), "shares": shares,
        "seconds": round(seconds, 2), "per_second": round(count / seconds),
    }  # fmt: skip


def drain(path: Path) -> None:
    """One of those processes; prints the ids that it ended."""
    ended = []
    with closing(connect(path)) as conn:
        worker = claims.register_worker(conn, "bench", "0")
        print("ready", flush=True)
        sys.stdin.readline()
        while (claim := claims.claim(conn, worker)) is not None:
            claims.finish_job(conn, claim)
            ended.append(claim.job.id)
    print(json.dumps(ended))


@contextmanager
def killed_holding(words: list[str]) -> Iterator[None]:
    """A process that has taken a task, killed while it holds it."""
    process = subprocess.Popen([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "took one\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    yield


def hold(kind: str, path: Path) -> None:
    """Take one task and hold it until killed."""
    if kind == "ours":
        conn = connect(path)
        claims.claim(conn, claims.register_worker(conn, "bench", "0"))
    elif kind == "huey":
        assert huey_queue(path).dequeue() is not None
    else:
        assert lite_queue(path).pop() is not None
    print("took one", flush=True)
    time.sleep(600)


def huey_queue(path: Path) -> Any:
    from huey import SqliteHuey

    found = SqliteHuey(filename=str(path), fsync=True)
    found.edit = found.task(name="edit")(lambda number: None)
    return found


def lite_queue(path: Path) -> Any:
    from litequeue import LiteQueue

    found = LiteQueue(str(path))
    found.conn.execute("PRAGMA synchronous = FULL")
    return found


def bench_huey(folder: Path, count: int) -> dict[str, Any]:
    path = folder / "huey.db"
    huey = huey_queue(path)
    began = time.perf_counter()
    for i in range(CLAIMS * 2):  # every enqueue is a transaction of its own: more would only take longer
        huey.enqueue(huey.edit.s(i))
    rate = round(CLAIMS * 2 / (time.perf_counter() - began))
    payload = huey.serialize_task(huey.edit.s(0))
    with closing(sqlite3.connect(path)) as conn, conn:
        conn.executemany(
            "INSERT INTO task (queue, data, priority) VALUES ('huey', ?, 0)",
            ((payload,) for _ in range(count - CLAIMS * 2)),
        )
    claimed = summary(timed(huey.dequeue, CLAIMS))
    left = huey.pending_count()
    with killed_holding(["--hold", "huey", str(path)]):
        lost = left - huey_queue(path).pending_count()
    return {"claims": claimed, "adds_per_second": rate, "after_kill": f"{lost} lost: taken out before it ran"}


def bench_litequeue(folder: Path, count: int) -> dict[str, Any]:
    path = folder / "lite.db"
    lite = lite_queue(path)
    began = time.perf_counter()
    for i in range(CLAIMS * 2):
        lite.put(str(i))
    rate = round(CLAIMS * 2 / (time.perf_counter() - began))
    with lite.transaction(mode="IMMEDIATE"):
        for i in range(count - CLAIMS * 2):
            lite.put(str(i))
    claimed = summary(timed(lite.pop, CLAIMS))
    waiting = lite.qsize()
    with killed_holding(["--hold", "litequeue", str(path)]):
        again = lite_queue(path)
        stuck = len(list(again.list_locked(0))) - CLAIMS
        assert again.qsize() <= waiting
    return {
        "claims": claimed, "adds_per_second": rate,
        "after_kill": f"{stuck} stays locked until a person lists and retries it; it is never handed out again",
    }  # fmt: skip


def bench_kill(folder: Path) -> str:
    """What becomes of ours."""
    path = folder / "kill.db"
    with closing(connect(path)) as conn:
        fill(conn, folder, 10)
        with killed_holding(["--hold", "ours", str(path)]):
            began = time.perf_counter()
            events = claims.rescue(conn)
            ms = (time.perf_counter() - began) * 1000
        waiting = records.counts(conn)["queued"]
    assert waiting == 10
    return f"0 lost: {len(events)} rescued at the next look, {ms:.0f} ms, with the attempt in its story"


def bench(folder: Path, sizes: tuple[int, int], drained: int, bulk: int) -> dict[str, Any]:
    report: dict[str, Any] = machine()
    small, large = sizes
    path = folder / "jobs.db"
    with closing(connect(path)) as conn:
        fill(conn, folder, small)
        report[f"claims at {small:,}"] = bench_claims(conn, min(CLAIMS, small // 2))
        seconds = fill(conn, folder, bulk)
        report[f"bulk add of {bulk:,}"] = {"seconds": round(seconds, 2), "per_second": round(bulk / seconds)}
        fill(conn, folder, large - bulk - small)
        report[f"claims at {large:,}"] = bench_claims(conn, min(CLAIMS, large // 2))
        report[f"reads at {large:,}, ms"] = bench_reads(conn, path)
        report["saving a step's state"] = bench_checkpoint(conn)
        report["plan of a claim"] = plan_of_claim(conn)
        conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        report["bytes a job"] = round(path.stat().st_size / records_count(conn))
    report[f"drain by {WORKERS} processes"] = bench_drain(folder, drained)
    report["a worker killed in the middle"] = bench_kill(folder)
    report[f"huey at {small:,}"] = bench_huey(folder, small)
    report[f"litequeue at {small:,}"] = bench_litequeue(folder, small)
    return report


def show(report: dict[str, Any]) -> None:
    for name, value in report.items():
        if isinstance(value, dict):
            value = ", ".join(f"{key} {each}" for key, each in value.items())
        print(f"{name:36}  {value}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="a few thousand jobs: some seconds")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, help="on the disk to measure; a temporary one otherwise")
    parser.add_argument("--drain", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--hold", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.drain:
        drain(given.drain)
    elif given.hold:
        hold(given.hold[0], Path(given.hold[1]))
    else:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            sizes = ((5000, 20_000), 400, 5000) if given.small else ((20_000, 1_000_000), 5000, 100_000)
            report = bench(Path(folder), *sizes)
        print(json.dumps(report, indent=2)) if given.json else show(report)


if __name__ == "__main__":
    main()
