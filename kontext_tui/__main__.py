"""`kontext-tui`, the command."""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
from typing import NoReturn

from core.errors import ExitCode, KontextError


class _Interrupted(BaseException):
    """A signal, Ctrl-C's first of all, by a name of our own: typer would turn KeyboardInterrupt into exit code 1."""


def main() -> NoReturn:
    """Run the command line; every error a user can mend is a line on stderr and an exit code, never a traceback."""
    signal.signal(signal.SIGINT, _interrupt)
    code: int
    try:
        _run()
        code = ExitCode.OK
    except KontextError as error:
        _complain(str(error))
        code = error.exit_code
    except sqlite3.Error as error:
        _complain(_refusal(error))
        code = ExitCode.DATABASE
    except _Interrupted as signalled:
        code = 128 + signalled.args[0]
    except BrokenPipeError:  # `kontext-tui list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = ExitCode.OK
    sys.exit(code)


def _refusal(error: sqlite3.Error) -> str:
    from core.jobs.database import BUSY_SECONDS, is_busy

    if is_busy(error):
        return f"the queue is locked by another program for over {BUSY_SECONDS:g} s; try again"
    return f"the queue's database refuses: {error}; `kontext-tui doctor` looks into it"


def _run() -> None:
    if len(sys.argv) == 1 and sys.stdin.isatty() and sys.stdout.isatty():
        from kontext_tui.opening import open_app  # the app at once: the commands and their options take 0.1 s

        open_app()
    else:
        from kontext_tui.cli import app

        app(prog_name="kontext-tui")


def _interrupt(number: int, frame: object) -> NoReturn:
    raise _Interrupted(number)


def _complain(message: str) -> None:
    from kontext_tui.text import safe_text

    for line in message.splitlines():
        print(f"kontext-tui: {safe_text(line)}", file=sys.stderr)


if __name__ == "__main__":
    main()
