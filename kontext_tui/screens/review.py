"""The review: each finished turn before and after, and what a person decides about it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, Literal

from core.errors import KontextError
from core.jobs import exports, results, review
from core.jobs.database import connect
from core.jobs.results import Decision, Scope
from kontext_tui import review_write
from kontext_tui.desktop import open_file
from kontext_tui.review_write import Step
from kontext_tui.screens import review_keys
from kontext_tui.screens.prompts import Asked, ConfirmDialog, LineDialog, PromptDialog
from kontext_tui.screens.review_walk import WalkScreen
from kontext_tui.text import safe_text

UNDO_DEPTH = 200


class ReviewScreen(WalkScreen):
    """Walk through finished turns and decide."""

    HELP = review_keys.HELP
    BINDINGS = review_keys.BINDINGS

    def __init__(self) -> None:
        super().__init__()
        self.undo_steps: list[Step] = []

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "undo":
            return True if self.undo_steps else None
        return super().check_action(action, parameters)

    # ------------------------------------------------------------ deciding

    def action_decide(self, decision: Decision | Literal[""]) -> None:
        """Decide about what is on show; while the next picture is still on its way, nothing happens."""
        turn, after = self.turn, self.after
        if self.pick is None or self.pick != self.shown or turn is None or after is None:
            return
        if decision == "accepted" and (after.image is None or after.sha256 != turn.output_sha256):
            self.home.toast(
                "this picture cannot be accepted: it is gone or changed; r makes it again", severity="warning"
            )
            return
        self.shown = None  # until it is there again: no second decision by a key that repeats
        self._write(
            review_write.decide,
            self.pick,
            decision or None,
            turn.output_sha256,
            then=self._go_undecided if decision else None,
        )

    def action_rest(self, decision: Decision) -> None:
        if self.pick is not None:
            self._rest(decision, self.pick.job_id, "")

    def action_accept_shown(self) -> None:
        """Accept all that is shown and undecided, once a person has said yes to their number."""
        self.run_worker(self._accept_shown, group="walk", exclusive=True)

    async def _accept_shown(self) -> None:
        scope = self.scope
        tally = await self._read(results.tally, Scope("undecided", scope.name))
        if tally is None or not tally.undecided:
            self.home.toast("nothing that is shown is undecided")
            return
        named = f" of pictures with “{safe_text(scope.name, 30)}” in their name" if scope.name else ""
        text = f"Accept {tally.undecided:,} undecided results{named}, looked at or not?"
        self.app.push_screen(
            ConfirmDialog(text, "Accept"), lambda yes: self._rest("accepted", None, scope.name) if yes else None
        )

    def _rest(self, decision: Decision, job_id: int | None, name: str) -> None:
        self._write(review_write.decide_rest, self.pick, decision, job_id, name, then=self._go_undecided)

    # ------------------------------------------------------------ redo, branch, undo

    def action_redo(self) -> None:
        self._write(review_write.redo, self.pick, None, False)

    def action_redo_prompt(self) -> None:
        pick, turn, data = self.pick, self.turn, self.data
        if pick is None or turn is None or data is None:
            return
        later = len(review.following(data.turns, turn.turn))

        def asked(answer: Asked | None) -> None:
            if answer is not None:
                self._write(review_write.redo, pick, answer.change, answer.with_later)

        title = f"Redo {pick} with another prompt"
        self.app.push_screen(PromptDialog(title, turn.prompt, turn.seed, redo=True, later=later), asked)

    def action_branch(self) -> None:
        pick = self.pick
        if pick is None or (self.turn is not None and self.turn.state != "done"):
            return

        def asked(answer: Asked | None) -> None:
            if answer is not None:
                self._write(review_write.branch, pick, answer.change)

        self.app.push_screen(PromptDialog(f"Go on from {pick if pick.turn else 'the input'}"), asked)

    def action_undo(self) -> None:
        if self.undo_steps:
            self.run_worker(partial(self._undo, self.undo_steps.pop()), group="write")

    async def _undo(self, step: Step) -> None:
        try:
            self.home.toast(await self.home.write(review_write.undo, step))
            self.said = ""
        except KontextError as error:
            self._refused(error)
        self.refresh_bindings()
        self.go(step.pick)

    def _write(self, function: Callable[..., Step | None], *arguments: Any, then: Any = None) -> None:
        self.run_worker(partial(self._written, function, arguments, then), group="write")

    async def _written(self, function: Callable[..., Step | None], arguments: tuple[Any, ...], then: Any) -> None:
        """Do a step, remember how to take it back, and go on: `then` is told where it was done."""
        try:
            step = await self.home.write(function, *arguments)
        except KontextError as error:
            self._refused(error)
            step = None
        if step is None:
            self.go(self.pick)
            return
        self.undo_steps = [*self.undo_steps, step][-UNDO_DEPTH:]
        self.said = step.said
        if len(step.before) > 1:  # most of what changed is not on the screen
            self.home.toast(f"{step.said}; u takes it back")
        if then is not None:
            await then(step.pick)
        else:
            self.go(self.pick)

    # ------------------------------------------------------------ files

    def action_open(self) -> None:
        if self.panes.pair is None:
            return
        pair = self.panes.pair
        shot = pair.before if self.panes.showing_before and pair.before is not None else pair.after
        if problem := open_file(shot.path):
            self.home.toast(f"{safe_text(shot.path, 300)}: {problem}", "warning")

    def action_export(self) -> None:
        self.run_worker(self._ask_export, group="walk", exclusive=True)

    async def _ask_export(self) -> None:
        tally = await self._read(results.tally)
        if tally is None or not tally.accepted:
            self.home.toast("nothing has been accepted yet", "warning")
            return

        def chosen(folder: str | None) -> None:
            if folder:
                self.run_worker(partial(self._export, Path(folder).expanduser().absolute()), group="export")

        text = f"{tally.accepted:,} accepted results; of a chain of accepted turns the last one is copied."
        dialog = LineDialog("Export accepted results to", text, str(Path.cwd() / "accepted"), "Export")
        self.app.push_screen(dialog, chosen)

    async def _export(self, folder: Path) -> None:
        try:
            done = await asyncio.to_thread(_export, self.home.database, folder)
        except KontextError as error:
            self._refused(error)
            return
        copied, there = (sum(each.outcome == word for each in done) for word in ("copied", "there"))
        lost = [str(each.pick) for each in done if each.outcome in ("missing", "changed")]
        text = f"{copied:,} copied to {safe_text(str(folder), 200)}" + (f", {there:,} there already" if there else "")
        if lost:
            text += f"; gone or changed since they were accepted: {', '.join(lost[:10])}"
        self.home.toast(text, "warning" if lost else "information")
        self.go(self.pick)


def _export(database: Path, folder: Path) -> list[exports.Exported]:
    """Copying takes its time: through a connection of its own, so that decisions need not wait for it."""
    with closing(connect(database, create=False)) as conn:
        return exports.export(conn, folder)
