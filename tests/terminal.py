"""The app in a real pseudo-terminal: keys go in, bytes come out, and pyte reads them as a terminal would."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyte


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
    ) -> None:
        columns, lines = size
        self.screen = pyte.Screen(columns, lines)
        self.stream = pyte.ByteStream(self.screen)
        self.output = bytearray()
        self.started = time.perf_counter()
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.execve(command[0], list(command), {**env, "TERM": term})
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
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
        if parse:
            self.stream.feed(data)
        return data

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
