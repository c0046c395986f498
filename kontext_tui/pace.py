"""How fast the queue goes, from what was measured: of finished turns and of the steps of those at work."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from core.jobs.board import Glance, Running, TurnDone

TURNS = 20
"""Finished turns that the pace is taken from: enough to be calm, few enough to follow another model or size."""
STEPS = 400
"""Steps that are kept for each worker's line."""
RECENT_MS = 3600_000


@dataclass
class Pace:
    """What was heard of finished turns and jobs so far."""

    event: int | None = None
    turns: deque[TurnDone] = field(default_factory=lambda: deque(maxlen=TURNS))
    jobs: deque[int] = field(default_factory=lambda: deque(maxlen=TURNS))
    step_ms: dict[int, deque[float]] = field(default_factory=dict)
    """Of finished turns, by worker."""

    def hear(self, seen: Glance) -> None:
        self.event = seen.event
        self.turns.extend(seen.turns_done)
        self.jobs.extend(seen.jobs_done)
        for turn in seen.turns_done:
            self.step_ms.setdefault(turn.worker_id, deque(maxlen=STEPS)).extend(turn.step_ms)
        alive = {worker.id for worker in seen.workers}
        for gone in self.step_ms.keys() - alive:
            del self.step_ms[gone]

    def steps_of(self, job: Running) -> list[float]:
        """The last steps of the worker that has this job, the newest last."""
        return [*self.step_ms.get(job.worker_id, ()), *job.step_ms][-STEPS:]

    def step_seconds(self, running: Sequence[Running]) -> float | None:
        """What a step takes, with loading, encoding and decoding spread over the steps of a turn."""
        steps = sum(turn.steps for turn in self.turns)
        if steps:
            return sum(turn.seconds for turn in self.turns) / steps
        measured = [ms for job in running for ms in job.step_ms]
        return median(measured) / 1000 if measured else None

    def images_a_minute(self, now_ms: int) -> float | None:
        """Of the last jobs done within an hour; None where there are not two."""
        recent = [at for at in self.jobs if now_ms - at < RECENT_MS]
        if len(recent) < 2 or recent[-1] <= recent[0]:
            return None
        return (len(recent) - 1) * 60_000 / (recent[-1] - recent[0])

    def seconds_left(self, steps: int, running: Sequence[Running]) -> float | None:
        """Until so many steps are done by those at work now; None where nothing was measured or nobody works."""
        each = self.step_seconds(running)
        return steps * each / len(running) if each is not None and running else None
