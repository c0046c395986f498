"""Opening the app from a terminal, and what is said when it is closed."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from core import paths
from core.jobs.database import connect

if TYPE_CHECKING:
    from kontext_tui.settings import Settings


def check(database: Path | None) -> tuple[Path, Settings]:
    """The queue to open and the configuration. A queue that nobody named is made where there is none.

    Raises what a person must mend before there is anything to show: a wrong configuration, a queue that is damaged,
    newer than this program, or named and missing.
    """
    path = paths.database(database)
    with closing(connect(path, create=database is None)):
        pass
    from kontext_tui import settings

    return path, settings.load()


def open_app(database: Path | None = None) -> None:
    """Run the app on a queue until it is closed. Raises what `check` does."""
    path, found = check(database)
    from kontext_tui import graphics

    if "TEXTUAL_DRIVER" in os.environ:
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    drawn = graphics.choose(found.images)
    from kontext_tui.app import KontextApp  # 0.4 s, most of it Textual

    said = KontextApp(path, found, drawn).run()
    if said:
        print(said, file=sys.stderr)


def _end_with_parent(parent: int) -> None:
    """An app in a browser ends with its server, however that ended: nobody could see it any more."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)  # which keeps the state
    time.sleep(5)
    os._exit(1)
