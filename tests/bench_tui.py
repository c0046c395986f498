"""How quick the app is: `make bench-tui`, or `python tests/bench_tui.py --jobs 20000`.

The real program in a real pseudo-terminal over a real queue, while another process stores progress as a worker does:
first paint, a key until the terminal is told of it, processor time at rest, memory.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import median

import psutil
from bench_queue import fill
from PIL import Image
from terminal import XTERM, Terminal, app_command

from core.jobs import claims, previews, turn_states
from core.jobs.database import connect
from quant.machine import machine

SIZE = (120, 40)
STEPS_A_SECOND = 20.0
ROOT = Path(__file__).parents[1]


def pretend(path: Path, seconds: float) -> None:
    """A worker whose steps take 50 ms: beats twice a second, turns and jobs as they end, and a preview while somebody
    looks. Does no work itself."""
    with closing(connect(path)) as conn:
        worker = claims.register_worker(conn, "cuda:0", "bench")
        claims.rescue(conn)  # what an earlier run of this left
        easel = previews.easel_for(conn, worker)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            claim = claims.claim(conn, worker)
            assert claim is not None
            turn_states.start_turn(conn, claim, 1, precision="fp8", runtime="bench")
            times: list[float] = []
            while len(times) < 28:
                time.sleep(0.5)
                times += [1000 / STEPS_A_SECOND + len(times) % 3] * int(0.5 * STEPS_A_SECOND)
                times = times[:28]
                turn_states.beat(conn, claim, 1, times)
                easel.after_step(claim.job.id, 1, len(times), (1200, 800), noise)
            turn_states.stage_turn(
                conn, claim, 1, output_path=f"/nowhere/{claim.job.id}.png", sha256="0" * 64, size=1, step_ms=times,
                seconds=1.4, peak_bytes=1,
            )  # fmt: skip
            turn_states.finish_turn(conn, claim, 1)
            claims.finish_job(conn, claim)


def noise() -> Image.Image:
    return Image.effect_noise((128, 128), 200).convert("RGB")


def first_paint(folder: Path, env: dict[str, str]) -> tuple[float, float]:
    """Seconds from the start of the command to the first name of a job on the screen, and seconds of processor time
    until then: on a machine with nothing else to do they are nearly the same."""
    terminal = Terminal(app_command(), size=SIZE, folder=folder, env=env, answers=XTERM)
    try:
        while b"IMG_" not in terminal.output:
            terminal.read(1.0, parse=False)
        seconds = time.perf_counter() - terminal.started
        return seconds, sum(psutil.Process(terminal.pid).cpu_times()[:2])
    finally:
        terminal.close()


def key_to_repaint(terminal: Terminal, first: int, count: int) -> list[float]:
    """Milliseconds from a `j` to the name of the job that the cursor is then on, drawn anew. Keys come as a person
    who is in a hurry sends them, eight a second."""
    times = []
    for number in range(first, first + count):
        while terminal.read(0.125, parse=False):
            pass
        mark = len(terminal.output)
        name = f"IMG_{number:07}".encode()
        began = time.perf_counter()
        terminal.send("j")
        while name not in terminal.output[mark:]:
            assert time.perf_counter() - began < 5, f"{name!r} was never drawn"
            terminal.read(0.5, parse=False)
        times.append((time.perf_counter() - began) * 1000)
    return times


def processor_share(process: psutil.Process, terminal: Terminal, seconds: float) -> float:
    """Percent of a core, of the app alone, over so many seconds in which nobody touches a key."""
    before = sum(process.cpu_times()[:2])
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        terminal.read(0.5, parse=False)
    return 100 * (sum(process.cpu_times()[:2]) - before) / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--keys", type=int, default=150)
    parser.add_argument("--rest", type=float, default=30.0, help="seconds of rest to measure")
    parser.add_argument("--queue", type=Path, help="keep the filled queue here, and use it again")
    parser.add_argument("--pretend", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.pretend:
        pretend(Path(options.pretend[0]), float(options.pretend[1]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        path = options.queue or folder / "jobs.db"
        if not path.exists():
            with closing(connect(path)) as conn:
                fill(conn, folder, options.jobs)
        home = {
            "KONTEXT_TUI_DB": str(path),
            "XDG_STATE_HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder),
            "PYTHONPATH": str(ROOT),
        }
        env = {**os.environ, **home, "COLORTERM": "truecolor"}
        paints = [first_paint(folder, env) for _ in range(6)][1:]  # the first one reads the disk
        worker = subprocess.Popen([sys.executable, __file__, "--pretend", str(path), "600"], env=env)
        terminal = Terminal(app_command(), size=SIZE, folder=folder, env=env, answers=XTERM)
        try:
            terminal.wait_for("running")
            process = psutil.Process(terminal.pid)
            terminal.send("s")  # the newest first: the rows that are walked stand still
            time.sleep(2)
            while terminal.read(0.3, parse=False):
                pass
            terminal.output.clear()
            terminal.send("g")
            newest = options.jobs - 1
            times = []
            for number in range(newest - 1, newest - 1 - options.keys, -1):
                times += key_to_repaint(terminal, number, 1)
            terminal.send("ssssg")  # back to the order of the queue
            idle = processor_share(process, terminal, options.rest)
            memory = process.memory_full_info()
        finally:
            terminal.close()
            worker.kill()
            worker.wait()
    times.sort()
    figures = {
        "jobs": options.jobs, "steps_a_second": STEPS_A_SECOND, "size": f"{SIZE[0]}x{SIZE[1]}",
        "first_paint_s": {
            "median": round(median(wall for wall, _ in paints), 2), "worst": round(max(paints)[0], 2),
            "processor": round(median(processor for _, processor in paints), 2),
        },
        "key_to_repaint_ms": {
            "p50": round(median(times), 1), "p95": round(times[int(0.95 * len(times))], 1),
            "worst": round(times[-1], 1),
        },
        "idle_percent_of_a_core": round(idle, 1),
        "memory_mb": {"resident": round(memory.rss / 1e6), "own": round(memory.uss / 1e6)},
    }  # fmt: skip
    load = {"load": os.getloadavg()[0]}
    print(json.dumps({**machine("textual", "rich"), **load, **figures}, indent=1))


if __name__ == "__main__":
    main()
