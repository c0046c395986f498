"""The app's one long command at a time: started, told of, stopped, and found again at the next start."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from textual.timer import Timer

from kontext_tui import tasks
from kontext_tui.tasks import Command, Task
from kontext_tui.text import safe_text

if TYPE_CHECKING:
    from kontext_tui.app import KontextApp

POLL_SECONDS = 0.4


class TaskRunner:
    """Belongs to the app: a task goes on whichever screen is on show."""

    def __init__(self, app: KontextApp) -> None:
        self.app = app
        self.task: Task | None = None
        self._timer: Timer | None = None

    @property
    def running(self) -> bool:
        return self.task is not None and self.task.outcome is None

    def start(self, commands: tuple[Command, ...]) -> None:
        """Start these commands, one after the other. Nothing else may be running."""
        self.app.run_worker(partial(self._start, Task(commands)))

    def adopt(self) -> None:
        """Go on with what was at work when the app was closed."""
        task = tasks.from_state(self.app.state.pop("task", None))
        if task is not None:
            self.task = task
            self._watch()

    def stop(self) -> None:
        if self.task is not None:
            self.task.stop()

    def going_on(self) -> str:
        """What goes on when the app is closed now; empty where nothing does."""
        return safe_text(self.task.command.title, 60) if self.task is not None and self.running else ""

    async def _start(self, task: Task) -> None:
        try:
            await self.app.in_background(task.start)
        except OSError as error:
            self.app.toast(f"{safe_text(task.command.title, 60)} could not be started: {error}", "error")
            return
        if self.task is not None:
            self.task.close()
        self.task = task
        self._watch()
        self._tell()

    def _watch(self) -> None:
        self._remember()
        if self._timer is None:
            self._timer = self.app.set_interval(POLL_SECONDS, self._poll)

    async def _poll(self) -> None:
        task = self.task
        if task is None:
            return
        at = task.at
        try:
            changed = await self.app.in_background(task.poll)
        except OSError as error:
            task.outcome, task.errors, changed = "failed", (str(error),), True
        if task.at != at:
            self._remember()
        if task.outcome is None:
            if changed:
                self._tell()
            return
        if self._timer is not None:
            self._timer.stop()
            self._timer = None
        self._remember()
        self._ended(task)

    def _ended(self, task: Task) -> None:
        from kontext_tui.screens.models import ModelsScreen

        title, output = safe_text(task.command.title, 60), task.output()
        task.close()
        screen = self.app.screen
        if task.outcome == "failed":
            self.app.toast(f"{title}: {safe_text(' '.join(task.errors), 400)}", "error")
        elif task.outcome == "done" and not isinstance(screen, ModelsScreen):
            self.app.toast(f"{title}: {safe_text(task.said, 200) or 'done'}")
        for each in self.app.screen_stack:
            if isinstance(each, ModelsScreen):
                each.task_ended(made_key(output))
        if task.command.shows and output.strip() and isinstance(screen, ModelsScreen) and task.outcome == "done":
            screen.show_output(title, output)

    def _tell(self) -> None:
        from kontext_tui.screens.models import ModelsScreen

        for each in self.app.screen_stack:
            if isinstance(each, ModelsScreen):
                each.show_task()

    def _remember(self) -> None:
        """At once: the app may be killed."""
        if self.task is not None and self.running:
            self.app.state["task"] = tasks.to_state(self.task)
        else:
            self.app.state.pop("task", None)
        self.app.remember()


def made_key(output: str) -> str | None:
    """The key of what a command made, in the path that it printed; None where it printed none."""
    lines = output.strip().splitlines()
    parts = lines[-1].split("/") if lines else []
    return next((part for part in parts if len(part) == 64 and part.isalnum()), None)
