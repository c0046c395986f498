"""The app in a real pseudo-terminal: keys go in, bytes come out, and pyte reads them as a terminal would."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyte

XTERM = {rb"\x1b\[c": b"\x1b[?64;1;2;6;9;15;18;21;22c"}
"""What a terminal says of itself: no Sixels, no pictures."""


class Terminal:
    """A command in a pseudo-terminal of its own."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        size: tuple[int, int] = (80, 24),
        folder: Path,
        env: Mapping[str, str],
        term: str = "xterm-256color",
        pixels: tuple[int, int] = (0, 0),
        answers: Mapping[bytes, bytes] | None = None,
    ) -> None:
        """pixels: of the whole window, where the terminal tells. answers: regular expressions of questions that are
        written to the terminal, and what it says; groups of the question may be used in it."""
        self.answers = dict(answers or {})
        self._asked = 0
        columns, lines = size
        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.output = bytearray()
        self.started = time.perf_counter()
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            kept = {name: value for name, value in env.items() if name not in ("COLUMNS", "LINES")}
            os.execve(command[0], list(command), {**kept, "TERM": term})
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, *pixels))
        self.code: int | None = None

    def read(self, seconds: float = 0.0, *, parse: bool = True) -> bytes:
        """What came within so many seconds; returns with the first of it."""
        ready, _, _ = select.select([self.fd], [], [], seconds)
        if not ready:
            return b""
        try:
            data = os.read(self.fd, 1 << 16)
        except OSError:  # the other end is closed
            return b""
        self.output += data
        self._answer()
        if parse:
            self.stream.feed(data)
        return data

    def _answer(self) -> None:
        seen = bytes(self.output[self._asked :])
        last = max(0, len(self.output) - 64)  # a question that has not come whole
        found = ((m, answer) for question, answer in self.answers.items() for m in re.finditer(question, seen))
        for question, answer in sorted(found, key=lambda each: each[0].start()):  # as terminals do: in order
            os.write(self.fd, question.expand(answer))
            last = max(last, self._asked + question.end())
        self._asked = max(last, self._asked)

    def send(self, keys: str) -> None:
        os.write(self.fd, keys.encode())

    @property
    def text(self) -> str:
        return "\n".join(self.screen.display)

    def wait_for(self, what: str | Callable[[], object], seconds: float = 30) -> None:
        """Until the screen holds a text, or something holds."""
        end = time.monotonic() + seconds
        while not (what in self.text if isinstance(what, str) else what()):
            assert time.monotonic() < end, f"{what!r} never came; the screen:\n{self.text}"
            self.read(0.05)

    def wait(self, seconds: float = 20) -> int:
        """Until the command ends; its exit code."""
        end = time.monotonic() + seconds
        while self.code is None:
            assert time.monotonic() < end, f"it never ended; the screen:\n{self.text}"
            self.read(0.05)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        while self.read(0.1):
            pass
        return self.code

    def close(self) -> None:
        if self.code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.fd)

    def cooked(self) -> bool:
        """Whether the terminal echoes and edits lines, as a shell left it."""
        flags = termios.tcgetattr(self.fd)[3]
        return bool(flags & termios.ICANON) and bool(flags & termios.ECHO)


def app_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "kontext_tui", *arguments]
