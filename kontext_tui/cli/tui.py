"""`tui`, and `kontext-tui` by itself on a terminal: the app."""

from __future__ import annotations

import sys

from kontext_tui.cli import options as opt


def on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def tui(db: opt.Db = None) -> None:
    """Open the app: the queue at work, and the review. The same as `kontext-tui` alone."""
    from core import paths
    from core.errors import UsageError

    if not on_terminal():
        raise UsageError("the app needs a terminal; `kontext-tui status` and `list` print what it shows")
    from kontext_tui.app import open_app

    said = open_app(paths.database(db))
    if said:
        print(said, file=sys.stderr)
