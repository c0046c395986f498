"""What a person does with a batch: its turns, its file, and queueing it. The twins are `add` and `run`."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from core import script as scripts
from core.errors import KontextError, OutputError
from core.jobs.workers import live_workers
from kontext_tui import batch
from kontext_tui.batch import Form
from kontext_tui.daemons import in_daemon
from kontext_tui.text import safe_text

if TYPE_CHECKING:
    from core.script import Script
    from kontext_tui.screens.batch import BatchScreen

    Base = BatchScreen
else:
    Base = object

PAST = 50
"""Changes of turns that can be taken back."""


class BatchActions(Base):
    """The actions of `BatchScreen`."""

    # ------------------------------------------------------------ turns

    def action_turn(self, how: str) -> None:
        """Add, copy, remove or move the turn that is being edited, or take the last of these back."""
        self.form = self.take()
        before, index = self.form, self.at
        if how == "undo":
            if not self.past:
                self.home.toast("nothing to take back", timeout=2)
                return
            was, self.at = self.past.pop()
            self.form = replace(self.form, turns=was.turns)
        elif how == "add":
            self.form, self.at = batch.add_turn(before, index), index + 1
        elif how == "copy":
            self.form, self.at = batch.copy_turn(before, index), index + 1
        elif how == "remove":
            self.form, self.at = batch.remove_turn(before, index), max(0, min(index, len(before.turns) - 2))
        else:
            step = -1 if how == "up" else 1
            self.form = batch.move_turn(before, index, step)
            self.at = index + step if self.form != before else index
        if how != "undo" and self.form != before:
            self.past = [*self.past[-PAST:], (before, index)]
        self.fill()
        if how in ("add", "copy"):
            self.query_one("#turn-prompt").focus()

    def action_folders(self) -> None:
        """To the folders and back."""
        tree = self.query_one("#folders")
        if self.focused is tree:
            self.remove_class("-browsing")
            self.query_one("#inputs").focus()
        else:
            self.add_class("-browsing")
            self.call_after_refresh(tree.focus)

    def action_back(self) -> None:
        """Out of the folders, then of the field, then of the screen."""
        if self.has_class("-browsing") and self.has_class("-narrow"):
            self.remove_class("-browsing")
            self.query_one("#inputs").focus()
        elif self.focused is not self.query_one("#turns"):
            self.query_one("#turns").focus()
        else:
            self.home.action_mode("queue")

    def action_clear(self) -> None:
        """An empty form; `u` in the turns brings back the old ones."""
        self._replace(Form(model=self.form.model), None, "")
        self.home.toast("a new batch; u in the list of turns brings the old ones back")

    def _replace(self, form: Form, file: Path | None, saved: str) -> None:
        self.past = [*self.past[-PAST:], (self.take(), self.at)]
        self.form, self.file, self.saved, self.at = form, file, saved, 0
        self.fill()

    # ------------------------------------------------------------ files

    def action_save(self) -> None:
        from kontext_tui.screens.prompts import LineDialog

        self.form = self.take()
        name = batch.below(str(self.file), self.home_folder) if self.file is not None else "batch.yaml"
        text = "A script for `kontext-tui add` and `run`; paths in it count from its own folder."
        self.app.push_screen(LineDialog("Save the batch as", text, name, "Save"), self._named)

    def _named(self, line: str | None) -> None:
        if line is not None:
            path = Path(line).expanduser()
            if path.suffix.lower() not in (".yaml", ".yml"):
                path = path.with_name(path.name + ".yaml")
            self.run_worker(partial(self._save, self.home_folder / path))

    async def _save(self, path: Path, over: bool = False) -> None:
        from kontext_tui.screens.questions import Question

        try:
            text = batch.save_text(self.form, path, self.home_folder)
            old = await in_daemon(partial(_read, path))
            if old is not None and old != text and not over and (old != self.saved or not self.laid_out):
                words = "It was written by hand or by another: its comments and its layout go."
                question = Question(f"Write over {safe_text(path.name, 60)}?", words)
                self.app.push_screen(question, lambda yes: self.run_worker(self._save(path, True)) if yes else None)
                return
            await in_daemon(partial(_write, path, text))
        except KontextError as error:
            self.home.toast(safe_text(str(error).splitlines()[0], 300), "error")
            return
        self.file, self.saved = path, text
        self.keep()
        self.home.toast(f"saved {safe_text(batch.below(str(path), self.home_folder), 200)}")

    def action_load(self) -> None:
        from kontext_tui.screens.prompts import LineDialog

        name = batch.below(str(self.file), self.home_folder) if self.file is not None else ""
        text = "The file of an edit script. What the form holds now goes; u in the turns brings them back."
        self.app.push_screen(LineDialog("Load a script", text, name, "Load"), self._load_named)

    def _load_named(self, line: str | None) -> None:
        if line is not None:
            self.run_worker(partial(self.load, self.home_folder / Path(line).expanduser()))

    async def load(self, path: Path) -> None:
        """Fill the form with a script's file; a wrong one is said and changes nothing."""
        try:
            script = await in_daemon(partial(scripts.load, path))
            text = await in_daemon(partial(_read, path)) or ""
        except KontextError as error:
            self.home.toast("\n".join(safe_text(line, 300) for line in str(error).splitlines()[:6]), "error")
            return
        self._replace(batch.from_script(script, self.home_folder), path, text)
        self.home.toast(f"loaded {safe_text(batch.below(str(path), self.home_folder), 200)}")

    @property
    def laid_out(self) -> bool:
        """Whether the file's text is as this form writes it: then writing over it takes nothing away."""
        with suppress(KontextError):
            folder = self.file.parent if self.file is not None else self.home_folder
            script = scripts.parse(self.saved, file=batch.NAME, folder=folder)
            form = batch.from_script(script, folder.resolve())
            return batch.write(batch.values(form)) == self.saved
        return False

    # ------------------------------------------------------------ the queue

    def action_queue(self) -> None:
        self.form = self.take()
        if not self.busy:
            self.run_worker(self._queue, group="queue")

    async def _queue(self) -> None:
        """Queue what the form says, under the name of its file where that says the same."""
        from kontext_tui.cli.enqueue import prepare, sentence

        checked = await in_daemon(partial(batch.check, self.form, self.home_folder))
        if checked.script is None:
            self.checked = checked
            self.show()
            self.home.toast(f"not queued: {safe_text(checked.problems[0][1], 300)}", "error")
            return
        total = 0

        def found(pictures: int) -> None:
            nonlocal total
            total = pictures

        def read(done: int) -> None:
            self.busy = f"reading pictures: {done:,} of {total:,}"

        self.busy = "looking for pictures"
        ticking = self.set_interval(0.25, self.show)
        try:
            script = await in_daemon(partial(self._script, checked.script))
            prepared = await in_daemon(partial(prepare, script, on_found=found, on_progress=read))
            added = await self.home.write(prepared.add)
            workers = await self.home.read(live_workers)
        except KontextError as error:
            self.home.toast("not queued: " + safe_text(str(error).splitlines()[0], 300), "error")
            return
        finally:
            ticking.stop()
            self.busy = ""
            self.show()
        self.home.toast(sentence(added) + ("" if workers else "; no worker is at work: w starts one"))
        self.home.action_mode("queue")

    def _script(self, script: Script) -> Script:
        """The same script from its file, if that is what the file says: then it is known by its name."""
        if self.file is None:
            return script
        with suppress(KontextError):
            filed = scripts.load(self.file)
            if filed.dump() == script.dump():
                return filed
        return script


def _read(path: Path) -> str | None:
    """A script's text; None where there is none. What cannot be read is not one of ours."""
    try:
        return path.read_bytes().decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror}") from None


def _write(path: Path, text: str) -> None:
    """The whole file or nothing of it."""
    path = Path(os.path.realpath(path))  # a link stays one
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, "utf-8", newline="")
        part.replace(path)
    except (OSError, ValueError) as error:
        with suppress(OSError):
            part.unlink()
        raise OutputError(f"{path} cannot be written: {getattr(error, 'strerror', error)}") from None
