"""`tui`, and `kontext-tui` by itself on a terminal: the app."""

from __future__ import annotations

import os
import sys

from kontext_tui.cli import options as opt


def on_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def tui(db: opt.Db = None) -> None:
    """Open the app: the queue at work, and the review. The same as `kontext-tui` alone."""
    from core.errors import UsageError
    from kontext_tui.opening import open_app

    if not on_terminal() and "TEXTUAL_DRIVER" not in os.environ:  # which `web` sets: the browser is the terminal
        raise UsageError("the app needs a terminal; `kontext-tui status` and `list` print what it shows")
    open_app(db)
