"""For tests of the app: what is on the screen, and waiting for it. What a key does shows a moment later, never at
once: the app reads and writes in threads."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from kontext_tui.app import KontextApp


async def until(pilot: Any, condition: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"what was waited for never came; on screen:\n{shown(pilot.app)}"
        await pilot.pause(0.05)


def shown(app: KontextApp) -> str:
    """The screen as text."""
    return "\n".join("".join(segment.text for segment in strip) for strip in app.screen._compositor.render_strips())


def toasts(app: KontextApp) -> list[str]:
    return [str(note.message) for note in app._notifications]
