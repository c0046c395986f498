"""The picture that a worker is at, as far as it has come.

Workers paint only while somebody looks: this frame says so while it is on show and a key was pressed lately. A night
in which the app is left open costs them nothing.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

from core.jobs import previews
from core.jobs.board import Running
from core.jobs.previews import Preview
from kontext_tui.graphics import Graphics
from kontext_tui.pictures import Shot
from kontext_tui.widgets.picture import PictureFrame

if TYPE_CHECKING:
    from kontext_tui.app import KontextApp

LOOK_SECONDS = 2.0
"""How often the picture is drawn anew: 10 ms of processor time each."""
REST_SECONDS = 600.0
"""So long after the last key nobody is taken to be looking any more."""


class LivePreview(PictureFrame):
    """Follows one running job; hidden while there is none, and where the screen has no room."""

    DEFAULT_CSS = """
    LivePreview { display: none; height: 13; border-title-color: $foreground 60%; }
    LivePreview.-running { display: block; }
    """

    def __init__(self, graphics: Graphics, *, on: bool = True) -> None:
        super().__init__(graphics)
        self.on = on and graphics.kind != "off"
        self.job: Running | None = None
        self.seen: Preview | None = None

    def on_mount(self) -> None:
        if self.on:
            self.set_interval(LOOK_SECONDS, self._look)
            self.run_worker(asyncio.to_thread(previews.tidy, self._database))

    @property
    def _database(self) -> Path:
        return cast("KontextApp", self.app).database

    def follow(self, job: Running | None) -> None:
        """Show how far this job has come, from now on; None: nothing runs."""
        before, self.job = self.job, job
        if job is None or before is None or before.worker_id != job.worker_id:
            self.seen = None
            self.show(Shot("", problem="the first steps …"), title="")
        self.set_class(self.on and job is not None, "-running")

    async def _look(self) -> None:
        job = self.job
        if job is None or not self.display or not self.region or not self.screen.is_current:
            return
        if time.monotonic() - cast("KontextApp", self.app).touched > REST_SECONDS:
            self.show(Shot("", problem="resting; any key wakes the preview"), title="")
            self.seen = None
            return
        found = await asyncio.to_thread(_glance, self._database, job.worker_id)
        if found is None or self.job is None or self.job.worker_id != job.worker_id:
            return
        if self.seen is None or (found.job_id, found.turn, found.step) != _place(self.seen):
            self.seen = found
            title = f"#{found.job_id} turn {found.turn}, after step {found.step}"
            self.show(Shot("", found.image, found.size), title=title)


def _place(seen: Preview) -> tuple[int, int, int]:
    return seen.job_id, seen.turn, seen.step


def _glance(database: Path, worker_id: int) -> Preview | None:
    """Say that somebody looks, and look."""
    try:
        previews.watch(database)
    except OSError:  # a folder that cannot be written: there is no preview, and nothing else is lost
        return None
    return previews.read(database, worker_id)
