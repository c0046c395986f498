"""What a measurement was made on; every command that prints figures prints this with them."""

from __future__ import annotations

import importlib
import os
import platform
import sqlite3
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def machine(*packages: str) -> dict[str, str]:
    """Processor, Python, SQLite, the packages named (their distributions' versions) and the date."""
    facts = {
        "machine": f"{len(os.sched_getaffinity(0))} x {_processor()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
    }
    for package in packages:
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts | {"date": time.strftime("%Y-%m-%d")}


def graphics() -> dict[str, str]:
    """The GPU that torch computes on and its driver; empty where there is none."""
    import torch

    if not torch.cuda.is_available():
        return {}
    major, minor = torch.cuda.get_device_capability()
    facts = {"gpu": torch.cuda.get_device_name(), "compute capability": f"{major}.{minor}"}
    facts["cuda"] = str(torch.version.cuda)
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        driver = nvml.nvmlSystemGetDriverVersion()
        facts["driver"] = driver.decode() if isinstance(driver, bytes) else str(driver)
    except Exception:  # whatever a driver's library raises: the figures stand without it
        facts["driver"] = "unknown"
    return facts


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
