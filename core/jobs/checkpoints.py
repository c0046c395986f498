"""The state inside a turn, kept so that a killed worker costs seconds and the rest gives the same bits."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from core.edit.refresh import can_resume
from core.edit.studio import Session
from core.jobs import turn_states
from core.jobs.claims import Claim
from core.jobs.records import Turn
from core.jobs.scribe import Scribe

if TYPE_CHECKING:
    from core.edit.editor import Progress

SECONDS = 20.0
"""How much work a kill may cost, less than a step more. A megapixel's latents are 0.5 MB, a few ms to write; 0 saves
every step before the next one begins."""


@dataclass
class Checkpointer:
    """Has the state of one turn saved every so often, and finds what an earlier attempt saved.

    source_sha256: of the file that the turn starts from, which may be on its way to the disk.
    """

    conn: sqlite3.Connection
    scribe: Scribe
    claim: Claim
    session: Session
    turn: Turn
    source_sha256: Callable[[], str]
    seconds: float = SECONDS
    saved: float = field(default_factory=time.monotonic)

    def identity(self) -> dict[str, Any]:
        """What must be the same for the rest to give the same bits."""
        job, turn = self.claim.job, self.turn
        return {
            "model": job.model,
            "runtime": self.session.runtime,
            "precision": self.session.precision,
            "source": self.source_sha256(),
            "edit": [turn.prompt, turn.seed, turn.steps, turn.guidance, turn.context_refresh, job.output_size],
        }

    def resume(self) -> tuple[Progress | None, list[float]]:
        """What to go on from, and the ms of the steps behind it; (None, []) where there is nothing that fits."""
        found = turn_states.load_checkpoint(self.conn, self.claim.job.id, self.turn.turn)
        if found is None:
            return None, []
        step, text, state = found
        meta = json.loads(text)
        if meta["identity"] != self.identity() or not self._can_resume(step):
            return None, []
        from core.edit.editor import Progress

        return Progress(step, meta["dtype"], tuple(meta["shape"]), state), list(meta["step_ms"])

    def _can_resume(self, step: int) -> bool:
        return can_resume(step, self.turn.steps, self.turn.context_refresh)

    def after_step(self, step: int, latents: Any, step_ms: list[float]) -> None:
        """Save where it is time to."""
        if time.monotonic() - self.saved >= self.seconds:
            self.save(step, latents, step_ms, now=self.seconds <= 0)

    def save(self, step: int, latents: Any, step_ms: list[float], *, now: bool) -> None:
        """Have the state after a step saved in the place of an earlier one; now: wait until it is.

        Not after the last step, whose result is a moment away, nor where what was kept of the context would have to
        be saved too: the step saved before is the one to go on from.
        """
        if self._can_resume(step):
            # Taken here, where nothing else uses the GPU: half a megabyte, and a fraction of a millisecond.
            progress = self.session.snapshot(step, latents)
            self.scribe.put("checkpoint", self.claim, partial(self._write, progress, list(step_ms)))
            self.saved = time.monotonic()
        if now:
            self.scribe.flush(self.claim)

    def _write(self, progress: Progress, step_ms: list[float], conn: sqlite3.Connection) -> None:
        meta = {"identity": self.identity(), "dtype": progress.dtype, "shape": progress.shape, "step_ms": step_ms}
        turn_states.save_checkpoint(conn, self.claim, self.turn.turn, progress.step, json.dumps(meta), progress.data)
