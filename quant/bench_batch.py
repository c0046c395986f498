"""A night through the real queue, supervisor and workers: images an hour, how much of the time is denoising, and how
long it is from the last step of a turn to the first one of the next.

Warm-up is apart: each worker's first jobs load and compile, and nothing counts until every worker has done one.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from core.errors import UnavailableError
from quant.random_weights import Size

if TYPE_CHECKING:
    from core.edit.models import ModelSpec
    from core.edit.studio import LoadedSession, Loading
    from core.jobs.events import Event

TURNS = ("Make it look like sunset", "Add fog")
SIZE = "KONTEXT_TUI_BENCH_SIZE"
"""Environment of workers over random weights: a `Size` as JSON."""
STUDIO = "quant.bench_batch:RandomStudio"


@dataclass
class RandomStudio:
    """Edits with random weights, made once a worker and precision."""

    device: str = "auto"
    on_load: Callable[[Loading], None] = lambda loading: None
    max_vram: int | None = None
    _precision: str = ""
    _session: Any = field(default=None)

    def open(
        self,
        model: str,
        precision: str,
        runtime: str,
        *,
        keep_context: bool = False,
        prompts: Sequence[str] = (),
        upcoming: Callable[[], Sequence[str]] = tuple,
    ) -> LoadedSession:
        if self._precision != precision:
            from core.edit.loading import pick_device
            from core.edit.studio import LoadedSession, Loading
            from quant.bench import random_session

            start = time.perf_counter()
            device = pick_device(self.device)
            self._session = None
            made = random_session(Size(**json.loads(os.environ[SIZE])), precision, device)
            self._session, self._precision = LoadedSession(*made), precision
            how = (self._session.precision, self._session.runtime, "random weights")
            self.on_load(Loading("random-weights", str(device), *how, 0.0, time.perf_counter() - start))
        session: LoadedSession = self._session
        session.prepare(prompts, upcoming)
        return session

    def make_room(self) -> str:
        return ""


def run(
    spec: ModelSpec,
    precision: str,
    runtime: str,
    *,
    jobs: int,
    steps: int,
    devices: Sequence[str],
    size: Size | None = None,
    context_refresh: int = 1,
    photo: tuple[int, int] | None = None,
    on_turn: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Edit `jobs` pictures by two turns each on these devices; `size`: with random weights of it, not `spec`'s.

    photo: width and height of the pictures, which are JPEGs then; else they are PNGs of the model's own size.

    Raises UnavailableError with the reason where the jobs cannot be done.
    """
    from core.jobs import queue
    from core.jobs.database import connect
    from core.jobs.records import get_job, get_turns
    from core.jobs.supervisor import Plan, supervise
    from core.script import Script

    with tempfile.TemporaryDirectory(prefix="kontext-tui-bench-") as name:
        folder = Path(name)
        count = jobs + len(devices)  # each worker warms up on one
        found = _pictures(folder / "in", count, spec, photo)
        script = Script.model_validate(
            {
                "input": str(folder / "in"), "output": str(folder / "out"), "model": str(spec.folder or spec.name),
                "precision": precision, "runtime": runtime, "seed": 7, "steps": steps, "turns": list(TURNS),
                "context_refresh": context_refresh,
            }
        )  # fmt: skip
        conn = connect(folder / "jobs.db")
        clock = _Clock(len(devices), on_turn, count * len(TURNS))
        if size is not None:
            os.environ[SIZE] = json.dumps(asdict(size))
        try:
            queue.add(conn, script, spec, queue.plan(script, found, spec))
            studio = Plan.studio if size is None else STUDIO
            plan = Plan(folder / "jobs.db", devices, studio=studio, step_seconds=600.0)
            supervise(plan, conn, clock.hear, lambda: 0)
            done = [get_job(conn, row[0]) for row in conn.execute("SELECT id FROM jobs")]
            if wrong := next((job for job in done if job.state != "done"), None):
                raise UnavailableError(f"the batch could not be edited: {wrong.error}")
            turns = [turn for job in done for turn in get_turns(conn, job.id)]
        finally:
            os.environ.pop(SIZE, None)
            conn.close()
    return clock.facts(jobs, steps, devices) | {
        "precision": turns[0].precision, "runtime": turns[0].runtime, "context_refresh": context_refresh,
        "seconds_a_turn": round(median(turn.seconds or 0.0 for turn in turns), 3),
    }  # fmt: skip


class _Clock:
    """Hears what workers tell; what it counts begins with the step after each of them has done a job."""

    def __init__(self, workers: int, on_turn: Callable[[int, int], None], total: int) -> None:
        self.workers, self.on_turn, self.total = workers, on_turn, total
        self.begun = self.end = time.perf_counter()
        self.start: float | None = None
        self.jobs = self.all = self.steps = 0
        self.turns: set[tuple[int | None, int | None]] = set()
        self.denoise_ms = 0.0
        self.loads: list[float] = []
        self.pauses: dict[bool, list[float]] = {True: [], False: []}
        self.peak = 0

    def hear(self, event: Event) -> None:
        now = time.perf_counter()
        if event.what == "loaded":
            self.loads.append(event.data["seconds"])
            self.jobs = 0  # those of workers that were there before are no warm-up of this one
        elif event.what == "step":
            if self.start is None:
                self.start = now if self.jobs >= self.workers else None
            else:  # of a step that was under way the part since
                self.denoise_ms += min(event.data["ms"], (now - self.start) * 1000)
                self.steps += 1
                self.turns.add((event.job_id, event.turn))
        elif event.what == "turn_done":
            self.all += 1
            self.on_turn(self.all, self.total)
            self.peak = max(self.peak, event.data.get("peak_bytes") or 0)
            self.end = now
            if (event.job_id, event.turn) in self.turns and (pause := event.data["pause_ms"]) is not None:
                self.pauses[event.turn == 1].append(pause)
        elif event.what == "done":
            self.jobs += 1

    def facts(self, jobs: int, steps: int, devices: Sequence[str]) -> dict[str, Any]:
        start = self.end if self.start is None else self.start
        wall = self.end - start
        return {
            "jobs": jobs, "turns": len(self.turns), "steps": steps, "devices": list(devices),
            "wall_s": round(wall, 2),
            "images_per_hour": round(3600 * self.steps / steps / wall, 1) if wall else 0.0,
            "denoise_share": round(self.denoise_ms / 1000 / wall / len(devices), 4) if wall else 0.0,
            "pause_ms": {
                name: round(median(self.pauses[first]), 1) if self.pauses[first] else None
                for name, first in (("next_job", True), ("next_turn", False))
            },
            "warm_up_s": round(start - self.begun, 1), "load_s": [round(each, 2) for each in self.loads],
            "peak_bytes": self.peak,
        }  # fmt: skip


def _pictures(folder: Path, count: int, spec: ModelSpec, photo: tuple[int, int] | None) -> Any:
    from core.inputs import FoundInput
    from quant.bench import make_picture

    folder.mkdir()
    found = []
    for number in range(count):
        path = folder / f"picture-{number:03}.{'jpg' if photo else 'png'}"
        make_picture(*(photo or spec.sizes[-1]), number).save(path)
        found.append(FoundInput(path, path.name))
    return found
