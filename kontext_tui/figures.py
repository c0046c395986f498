"""Numbers as people read them at a glance: short lengths of time, sizes, and lines of blocks."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median

BLOCKS = "▁▂▃▄▅▆▇█"


def short_time(seconds: float) -> str:
    """At most five characters: 0.4s, 45s, 3m20, 2h05, 3d04, 120d."""
    if seconds < 9.95:
        return f"{max(seconds, 0):.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    for unit, size, below, digit in (("m", 60, 3600, 1), ("h", 3600, 86400, 60), ("d", 86400, 8_640_000, 3600)):
        if whole < below:
            return f"{whole // size}{unit}{whole % size // digit:02}"
    return f"{whole // 86400}d"


def short_ms(ms: float) -> str:
    """At most five characters: 0.4, 41, 980, 1.2s, 12s."""
    if ms < 9.95:
        return f"{ms:.1f}"
    return f"{ms:.0f}" if ms < 999.5 else short_time(ms / 1000)


def counted(count: int, word: str) -> str:
    """1 turn, 2 turns, 1,000 turns."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def size(count: float) -> str:
    """Bytes in binary units: 512 MiB, 1.4 GiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


UNITS = {"mb": 10**6, "gb": 10**9, "mib": 2**20, "gib": 2**30}


def read_size(text: str) -> int:
    """Bytes of what a person wrote: 12GB (of ten), 11.5GiB (binary), MB and MiB likewise. Raises ValueError."""
    match = re.fullmatch(r"\s*(\d{1,9}(?:\.\d{1,9})?)\s*([MG]i?B)\s*", text, re.ASCII | re.IGNORECASE)
    found = round(float(match[1]) * UNITS[match[2].lower()]) if match else 0
    if not found:
        raise ValueError("write a number and GB, GiB, MB or MiB, as in 12GB or 11.5GiB")
    return found


def short_path(path: str | Path) -> str:
    """A path with ~ for the home folder; still foreign text."""
    home, text = os.path.expanduser("~"), str(path)  # noqa: PTH111 - text, not a path to use
    return "~" + text[len(home) :] if text.startswith(home + os.sep) else text


def percentile(values: Sequence[float], part: float) -> float:
    """The smallest value that so many of them do not exceed: nearest rank, so that it is one that was measured."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


def spark(values: Sequence[float], width: int) -> str:
    """The last `width` values as blocks. A tenth more or less than the median stays low: noise is no mountain."""
    shown = list(values)[-width:]
    if not shown:
        return ""
    middle = median(shown)
    low, high = min(min(shown), middle * 0.8), max(max(shown), middle * 1.2)
    return "".join(_block(value, low, high) for value in shown)


def level(values: Sequence[float], top: float, width: int) -> str:
    """The last `width` values as blocks between nothing and `top`."""
    return "".join(_block(value, 0.0, top) for value in list(values)[-width:])


def _block(value: float, low: float, high: float) -> str:
    part = (value - low) / (high - low) if high > low else 0.0
    return BLOCKS[min(len(BLOCKS) - 1, max(0, int(part * len(BLOCKS))))]


def bar(part: float, width: int) -> tuple[str, str]:
    """A bar of so many cells: what is full of it, and what is not; told apart without colours."""
    full = round(min(max(part, 0.0), 1.0) * width)
    return "━" * full, "─" * (width - full)
