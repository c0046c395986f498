"""Long commands as child processes of the app: the real ones, a session of their own each, told of as they go.

What they say goes to files, not pipes: a command goes on when the app is closed or killed, and the app that is opened
next finds it again. Ctrl-C's signal stops one, as it would on a terminal, and nothing half is left.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from core.jobs.process import ProcessId, is_gone, process_id
from kontext_tui.cli.steps import ENVIRONMENT
from kontext_tui.settings import state_file

PREFIX = "kontext-tui: "
"""How the command begins the lines of its errors."""
TAIL = 1 << 16
"""Bytes of what was said that are read at once."""
Outcome = Literal["done", "failed", "cancelled"]


@dataclass(frozen=True)
class Command:
    """One command line, after `kontext-tui`. shows: what it prints is what was asked for, whatever its exit code."""

    title: str
    args: tuple[str, ...]
    shows: bool = False

    def line(self) -> str:
        return shlex.join(("kontext-tui", *self.args))


@dataclass
class Task:
    """Commands one after the other, until one fails. Call its methods from one thread at a time."""

    commands: tuple[Command, ...]
    at: int = 0
    """Which of them is at work, or was the last."""
    began: float = field(default_factory=time.time)
    outcome: Outcome | None = None
    what: str = ""
    done: float = 0.0
    total: float = 0.0
    said: str = ""
    """The last line it said to a person."""
    errors: tuple[str, ...] = ()
    """Why it failed."""
    stops: int = 0
    """How often it was asked to stop."""
    ended: float | None = None
    process: subprocess.Popen[bytes] | None = None
    identity: ProcessId | None = None
    folder: Path | None = None
    _read: int = 0
    _rest: bytes = b""

    @property
    def command(self) -> Command:
        return self.commands[self.at]

    def start(self) -> None:
        """Start the command whose turn it is. Raises OSError."""
        tasks = state_file().with_name("tasks")
        tasks.mkdir(parents=True, exist_ok=True)
        self._forget_files()
        self.folder = Path(tempfile.mkdtemp(prefix="task-", dir=tasks))
        self.what, self.said, self.done, self.total, self._read, self._rest = "", "", 0.0, 0.0, 0, b""
        with (self.folder / "out").open("wb") as out, (self.folder / "err").open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "kontext_tui", *self.command.args],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True,
                env={**os.environ, ENVIRONMENT: "json"},
            )  # fmt: skip
        self.identity = process_id(self.process.pid)

    def poll(self) -> bool:
        """Hear what was said since, and go on to the next command; whether anything is another than before.

        Raises OSError where the next command cannot be started.
        """
        if self.outcome is not None:
            return False
        code = self.process.poll() if self.process is not None else None
        over = code is not None or (self.process is None and (self.identity is None or is_gone(self.identity)))
        heard = self._hear(last=over)
        if not over:
            return heard
        if code is None:  # it outlived the app that started it: what it printed last says how it ended
            code = 0 if self.output().strip() and not self.errors else 1
        if self.stops and code:
            self._end("cancelled")
        elif code and not (self.command.shows and self.output().strip()):
            self.errors = self.errors or (self.said or f"{self.command.title} ended with exit code {code}",)
            self._end("failed")
        elif self.at + 1 < len(self.commands):
            self.at += 1
            self.start()
        else:
            self._end("done")
        return True

    def stop(self) -> None:
        """Ask it to end, as Ctrl-C does; asked again, end it at once. What it leaves half is swept away later."""
        if self.outcome is not None or self.identity is None or is_gone(self.identity):
            return
        self.stops += 1
        with suppress(ProcessLookupError):
            if self.stops == 1:
                os.kill(self.identity.pid, signal.SIGINT)
            else:
                os.killpg(self.identity.pid, signal.SIGKILL)

    def output(self) -> str:
        """What it printed on stdout, as far as one screen can hold it."""
        return self._file("out", 0).decode("utf-8", "backslashreplace")

    def close(self) -> None:
        """Forget what it said."""
        self._forget_files()

    def _end(self, outcome: Outcome) -> None:
        self.outcome, self.ended = outcome, time.time()

    def _hear(self, *, last: bool) -> bool:
        heard = self._file("err", self._read)
        self._read += len(heard)
        lines = (self._rest + heard.replace(b"\r", b"\n")).split(b"\n")
        self._rest = b"" if last else lines.pop()
        for line in lines:
            self._take(line.decode("utf-8", "backslashreplace"))
        return bool(heard)

    def _take(self, line: str) -> None:
        if line.startswith("{"):
            with suppress(ValueError, KeyError, TypeError):
                told = json.loads(line)
                self.what, self.done, self.total = str(told["what"]), float(told["done"]), float(told["total"])
                return
        if line.startswith(PREFIX):
            self.errors = (*self.errors, line.removeprefix(PREFIX))
        elif line.strip():
            self.said = line.strip()

    def _file(self, name: str, start: int) -> bytes:
        try:
            with (self.folder or Path("/nowhere")).joinpath(name).open("rb") as file:
                file.seek(start)
                return file.read(TAIL)
        except OSError:
            return b""

    def _forget_files(self) -> None:
        if self.folder is not None:
            for name in ("out", "err"):
                (self.folder / name).unlink(missing_ok=True)
            with suppress(OSError):
                self.folder.rmdir()


def to_state(task: Task) -> dict[str, Any]:
    """What finds a task again at the next start, JSON-able."""
    return {
        "commands": [asdict(command) for command in task.commands],
        "at": task.at,
        "began": task.began,
        "stops": task.stops,
        "process": asdict(task.identity) if task.identity else None,
        "folder": str(task.folder),
    }


def from_state(state: object) -> Task | None:
    """The task that was at work when the app was closed; None where nothing can be made of what was kept."""
    try:
        kept: Mapping[str, Any] = state  # type: ignore[assignment]
        commands = tuple(
            Command(str(each["title"]), tuple(map(str, each["args"])), bool(each["shows"]))
            for each in kept["commands"]
        )
        task = Task(commands, int(kept["at"]), float(kept["began"]), stops=int(kept["stops"]))
        task.identity, task.folder = ProcessId(**kept["process"]), Path(kept["folder"])
        return task if 0 <= task.at < len(commands) else None
    except (KeyError, TypeError, ValueError):
        return None
