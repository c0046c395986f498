"""Screens as text files under tests/screens, read and compared as text: a change shows in a diff as what a person
sees, and stays when the library's markup changes. Colours are not in them; other tests look at those.

`KONTEXT_TUI_SCREENS=write python -m pytest tests/test_screens.py` writes them anew.
"""

from __future__ import annotations

import os
import time
from difflib import unified_diff
from pathlib import Path
from typing import Any

import pytest
from watching import shown

FOLDER = Path(__file__).parent / "screens"
NOW = 1_782_000_000.0
"""Every clock's time: 2026-06-21 00:00 UTC."""
SIZES = ((80, 24), (140, 40))


def stop_clocks(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """It is NOW, in UTC, and stays so; the home folder is `home`, so that paths in it are the same everywhere."""
    monkeypatch.setenv("TZ", "UTC")
    monkeypatch.setenv("HOME", str(home))
    time.tzset()
    monkeypatch.setattr(time, "time", lambda: NOW)


async def settle(pilot: Any, seconds: float = 20) -> str:
    """The screen as text, once it has stayed the same for half a second."""
    before, since = "", time.monotonic()
    end = since + seconds
    while time.monotonic() - since < 0.5:
        assert time.monotonic() < end, f"it never came to rest:\n{before}"
        await pilot.pause(0.05)
        text = "\n".join(line.rstrip() for line in shown(pilot.app).splitlines()) + "\n"
        if text != before:
            before, since = text, time.monotonic()
    return before


async def check(pilot: Any, name: str) -> None:
    """The screen is as it was kept under this name, for the size of this terminal."""
    size = pilot.app.size
    path = FOLDER / f"{name}-{size.width}x{size.height}.txt"
    text = await settle(pilot)
    if os.environ.get("KONTEXT_TUI_SCREENS") == "write":
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert path.is_file(), f"{path.name} is missing; KONTEXT_TUI_SCREENS=write makes it"
    kept, end = path.read_text(), time.monotonic() + 10
    while text != kept and time.monotonic() < end:  # on a busy machine it rests before all has come
        await pilot.pause(0.2)
        text = await settle(pilot)
    difference = "\n".join(unified_diff(kept.splitlines(), text.splitlines(), "kept", "now", lineterm=""))
    assert text == kept, f"{path.name} is another screen now:\n{difference}"
