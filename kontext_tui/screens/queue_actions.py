"""What a person does to jobs from the queue screen. Everything here has its twin on the command line."""

from __future__ import annotations

import os
import shlex
import sqlite3
import subprocess
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from textual.app import SuspendNotSupported

from core.jobs import control
from core.jobs.database import path_from_db
from core.jobs.workers import ask_to_stop, live_workers
from kontext_tui.text import safe_text

if TYPE_CHECKING:
    from kontext_tui.screens.queue import QueueScreen

    Base = QueueScreen
else:
    Base = object

CHUNK = 2_000
"""Jobs that are changed in one transaction: workers wait for it, for a fraction of a second."""
ENDED = ("done", "dead", "cancelled")


class QueueActions(Base):
    """The actions of `QueueScreen`."""

    # ------------------------------------------------------------ jobs

    def action_cancel(self) -> None:
        self._change(control.cancel, {"running": "ends after its step"}, ("queued", "scheduled", "failed", "held"),
                     "cancelled", then="; r queues again")  # fmt: skip

    def action_retry(self) -> None:
        self._change(control.retry, {}, ("dead", "failed", "cancelled"), "queued again")

    def action_hold(self) -> None:
        """Hold jobs; where the first of them is held, release them."""
        chosen = self.table.chosen()
        row = self.rows.get(chosen[0]) if chosen else None
        if row is not None and row.state == "held":
            self._change(control.unhold, {}, ("held",), "released")
        else:
            self._change(control.hold, {}, control.WAITING_STATES, "held", then="; h releases")

    def action_priority(self, step: int) -> None:
        chosen = self.table.chosen()
        row = self.rows.get(chosen[0]) if chosen else None
        level = (row.priority if row is not None else 0) + step

        def prioritise(conn: sqlite3.Connection, ids: Sequence[int]) -> dict[int, str]:
            return control.prioritise(conn, ids, level)

        states = ("queued", "scheduled", "failed", "held", "running", *ENDED)
        self._change(prioritise, {}, states, f"priority {level}")

    def _change(
        self,
        command: Callable[[sqlite3.Connection, Sequence[int]], dict[int, str]],
        words: dict[str, str],
        states: Sequence[str],
        word: str,
        then: str = "",
    ) -> None:
        """Change the chosen jobs and say what became of them."""
        chosen = self.table.chosen()
        if not chosen:
            self.home.toast("no job is chosen", "warning")
            return
        self.run_worker(partial(self._change_in_parts, command, chosen, dict.fromkeys(states, word) | words, then))

    async def _change_in_parts(
        self,
        command: Callable[[sqlite3.Connection, Sequence[int]], dict[int, str]],
        chosen: list[int],
        words: dict[str, str],
        then: str,
    ) -> None:
        before: dict[int, str] = {}
        for start in range(0, len(chosen), CHUNK):
            before |= await self.home.write(command, chosen[start : start + CHUNK])
        self.table.clear_marks()
        self.reload(order=True)
        counted: dict[str, list[int]] = {}
        for number, state in before.items():
            counted.setdefault(words.get(state, f"{state}: left as it is"), []).append(number)
        parts = [f"{_jobs(numbers)} {word}" for word, numbers in counted.items()]
        changed = any(state in words for state in before.values())
        self.home.toast(", ".join(parts) + (then if changed else ""), "information" if changed else "warning")

    # ------------------------------------------------------------ the queue and its workers

    async def action_pause(self) -> None:
        paused = self.answer is not None and self.answer.glance.paused
        if paused:
            await self.home.write(control.resume)
            self.home.toast("resumed")
        else:
            await self.home.write(control.pause, "by hand")
            running = len(self.answer.glance.running) if self.answer is not None else 0
            self.home.toast("paused: no job is taken until p resumes" + ("; what runs goes on" if running else ""))

    async def action_workers(self) -> None:
        """Start a worker where none is at work here; else ask those of this machine to end after their step."""
        here = [worker for worker in await self.home.read(live_workers) if worker.here]
        if here:
            asked = ask_to_stop(here)
            self.home.toast(f"{asked} worker{'s' * (asked != 1)} asked to end after the step; w starts one again")
        else:
            self.home.start_worker()

    # ------------------------------------------------------------ files

    async def action_open(self) -> None:
        from kontext_tui.desktop import open_file

        number = self.table.current
        if number is None:
            return
        path = await self.home.read(_result_of, number)
        if path is None:
            self.home.toast("no turn of this job is done yet", "warning")
            return
        problem = open_file(path)
        if problem:
            self.home.toast(f"{safe_text(path, 200)}: {safe_text(problem)}", "warning")
        else:
            self.home.toast(f"opened {safe_text(path, 200)}")

    async def action_edit(self) -> None:
        """Edit the script that the job came from; what is changed is queued by adding it again."""
        number = self.table.current
        if number is None:
            return
        path = await self.home.read(_script_of, number)
        if path is None or not Path(path).is_file():
            self.home.toast(f"the script of job {number} is not there any more", "warning")
            return
        before = Path(path).read_bytes()
        if not self._run_editor(path):
            return
        if Path(path).read_bytes() == before:
            self.home.toast("the script was left as it is")
            return
        from kontext_tui.screens.questions import Question

        name = safe_text(Path(path).name, 60)
        question = Question(
            f"Queue what {name} says now?", "Jobs that it asked for before stay; the same edit is not added twice."
        )
        self.app.push_screen(question, lambda yes: self._add_again(path) if yes else None)

    def _run_editor(self, path: str) -> bool:
        editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
        try:
            with self.app.suspend():
                code = subprocess.run([*shlex.split(editor), path]).returncode
        except SuspendNotSupported:
            self.home.toast("no editor can be opened here", "warning")
            return False
        except (OSError, ValueError) as error:
            self.home.toast(f"{safe_text(editor)} cannot be run: {error}; set EDITOR", "error")
            return False
        if code:
            self.home.toast(f"{safe_text(editor)} ended with {code}", "warning")
        return code == 0

    def _add_again(self, path: str) -> None:
        self.run_worker(partial(self._add, path))

    async def _add(self, path: str) -> None:
        from core import script as scripts
        from kontext_tui.cli.enqueue import prepare, sentence

        # Reading pictures takes its time: what else is done to the queue does not wait for it.
        prepared = await self.home.in_background(lambda: prepare(scripts.load(Path(path))))
        self.home.toast(sentence(await self.home.write(prepared.add)))

    # ------------------------------------------------------------ other screens

    def action_details(self) -> None:
        from kontext_tui.screens.details import DetailScreen

        if self.table.current is not None:
            self.app.push_screen(DetailScreen(self.table.current))

    def action_review(self) -> None:
        number = self.table.current
        if number is None or "review" not in self.home.MODES:
            return
        self.home.action_mode("review")
        self.app.screen.open_job(number)  # type: ignore[attr-defined]

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return not (action == "review" and "review" not in self.home.MODES)


def _jobs(numbers: Sequence[int]) -> str:
    return f"job {numbers[0]}" if len(numbers) == 1 else f"{len(numbers):,} jobs"


def _result_of(conn: sqlite3.Connection, number: int) -> str | None:
    """The newest result of a job."""
    row = conn.execute(
        "SELECT output_path FROM turns WHERE job_id = ? AND state = 'done' ORDER BY turn DESC LIMIT 1", (number,)
    ).fetchone()
    return path_from_db(row["output_path"]) if row else None


def _script_of(conn: sqlite3.Connection, number: int) -> str | None:
    """The file of the script that asked for a job last."""
    row = conn.execute(
        "SELECT b.script_path FROM batch_jobs l JOIN batches b ON b.id = l.batch_id"
        " WHERE l.job_id = ? AND b.script_path IS NOT NULL ORDER BY b.id DESC LIMIT 1",
        (number,),
    ).fetchone()
    return path_from_db(row["script_path"]) if row else None
