"""Which process is which: a pid alone names another process after a reboot or once pids wrap around."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class ProcessId:
    """One process on one boot of one host. `start_ticks`: clock ticks since boot when it began, proc(5) field 22."""

    host: str
    boot_id: str
    pid: int
    start_ticks: int


def this_process() -> ProcessId:
    return process_id(os.getpid())


def process_id(pid: int) -> ProcessId:
    """The process of this host that has this pid now."""
    return ProcessId(socket.gethostname(), _boot_id(), pid, _start_ticks(pid) or 0)


def is_gone(process: ProcessId) -> bool:
    """Whether the process has surely ended. False also where that cannot be known: another host."""
    if process.host != socket.gethostname():
        return False
    return process.boot_id != _boot_id() or _start_ticks(process.pid) != process.start_ticks


def boot_ms() -> int:
    """Milliseconds since boot, sleep included: the same for all processes, and no one can set it."""
    clock = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime_ns(clock) // 1_000_000


@cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:  # no procfs (macOS)
        import psutil

        return str(int(psutil.boot_time()))


def _start_ticks(pid: int) -> int | None:
    """Clock ticks since boot at which `pid` began, None when it has ended (a zombie has)."""
    if Path("/proc/self/stat").exists():
        try:
            # The command's name stands in brackets and may hold spaces and brackets itself.
            fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] in ("Z", "X") else int(fields[19])
    import psutil

    try:
        return int(psutil.Process(pid).create_time() * 100)
    except psutil.Error:
        return None
