"""Starting a worker that outlives the app."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from kontext_tui.settings import state_file


@dataclass(frozen=True)
class Started:
    """A worker's process, and where what it says is kept."""

    process: subprocess.Popen[bytes]
    log: Path

    def last_words(self) -> str:
        """The last line it said."""
        try:
            lines = self.log.read_text(errors="replace").splitlines()
        except OSError:
            return ""
        return lines[-1] if lines else ""


def start_worker(database: Path) -> Started:
    """`kontext-tui work` over the queue, in a session of its own: neither the app's end nor the terminal's ends it.

    It goes on until it is asked to end. Raises OSError.
    """
    log = state_file().with_name("work.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "kontext_tui",
        "work",
        "--gpus",
        "all",
        "--quiet",
        "--db",
        str(database.absolute()),
    ]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True, cwd=Path.cwd()
        )
    return Started(process, log)
