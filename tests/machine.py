"""What a measurement was made on; every command that prints figures prints this with them."""

from __future__ import annotations

import os
import platform
import sqlite3
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def machine(*packages: str) -> dict[str, str]:
    """Processor, Python, SQLite, the packages named (their distributions' versions) and the date."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    facts = {
        "machine": f"{len(os.sched_getaffinity(0))} x {names[0].partition(': ')[2] if names else platform.machine()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts | {"date": time.strftime("%Y-%m-%d")}
