"""Opening the app from a terminal, and what is said when it is closed."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path

from core import paths
from core.jobs.database import connect


def open_app(database: Path | None = None) -> None:
    """Run the app on a queue until it is closed.

    Raises what a person must mend before there is anything to show: a wrong configuration, a queue that is missing,
    damaged or newer than this program.
    """
    path = paths.database(database)
    with closing(connect(path, create=False)):
        pass
    from kontext_tui import graphics, settings

    found = settings.load()
    drawn = graphics.choose(found.images)
    from kontext_tui.app import KontextApp  # 0.4 s, most of it Textual

    said = KontextApp(path, found, drawn).run()
    if said:
        print(said, file=sys.stderr)
