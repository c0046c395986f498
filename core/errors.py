"""What can go wrong, as types: each error carries the exit code a command ends with and the word a job keeps.

Messages are one line that says what, where and what to do about it; nothing here prints.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """The process exit codes every command shares."""

    OK = 0
    """Everything asked for is done."""
    JOBS_FAILED = 1
    """The command ran, but some jobs ended dead or cancelled."""
    USAGE = 2
    """A wrong command line, edit script or input."""
    DATABASE = 3
    """The queue's database refuses: newer, corrupt, locked out, not a database."""
    UNAVAILABLE = 4
    """No model or runtime here can do what was asked."""
    INTERRUPTED = 130
    """Ctrl-C; the queue keeps what is left."""
    TERMINATED = 143
    """SIGTERM; the queue keeps what is left."""


class KontextError(Exception):
    """Base of all errors a user can mend. `kind` is what a job stores, `exit_code` what a command returns."""

    kind = "error"
    exit_code = ExitCode.JOBS_FAILED


class UsageError(KontextError):
    """A wrong argument on the command line."""

    kind = "usage"
    exit_code = ExitCode.USAGE


class InputError(KontextError):
    """A picture that cannot be edited. Never retried: the same bytes fail the same way."""

    kind = "input"
    exit_code = ExitCode.USAGE


class OutputError(KontextError):
    """A result that cannot be written."""

    kind = "output"
    exit_code = ExitCode.USAGE


class DatabaseError(KontextError):
    """The queue's database cannot be used as it is."""

    kind = "database"
    exit_code = ExitCode.DATABASE


class UnavailableError(KontextError):
    """No model, precision or runtime on this machine can do what was asked."""

    kind = "unavailable"
    exit_code = ExitCode.UNAVAILABLE


@dataclass(frozen=True)
class Problem:
    """One thing wrong in an edit script. `line` and `column` count from 1; 0 means the file as a whole."""

    file: str
    line: int
    column: int
    message: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{where}: {self.message}"


class ScriptError(KontextError):
    """A wrong edit script: all of its problems at once, in the order of the file."""

    kind = "script"
    exit_code = ExitCode.USAGE

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = sorted(problems, key=lambda p: (p.line, p.column))
        super().__init__("\n".join(str(p) for p in self.problems))
