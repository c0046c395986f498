"""Places where tests make a worker die, fail or hang, named in KONTEXT_TUI_FAILPOINT; without it they cost nothing.

`name:action[:nth]`, several parted by commas. Actions: kill (SIGKILL to oneself), abort, raise, hang, nospace, cuda.
nth: at which passing alone (from 1), counted over all processes in the folder KONTEXT_TUI_FAILPOINT_COUNT names.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

_ARMED = os.environ.get("KONTEXT_TUI_FAILPOINT", "")


def failpoint(name: str) -> None:
    """Do here what the environment asks for."""
    if _ARMED:
        _pass(name)


def _pass(name: str) -> None:
    specs = [spec.split(":") for spec in _ARMED.split(",") if spec.split(":")[0] == name]
    passing = _passing(name) if any(nth for _, _, *nth in specs) else 0
    for _, action, *nth in specs:
        if not nth or int(nth[0]) == passing:
            _act(action, name)


def _passing(name: str) -> int:
    with (Path(os.environ["KONTEXT_TUI_FAILPOINT_COUNT"]) / name).open("ab") as file:
        file.write(b"x")
        return file.tell()


def _act(action: str, name: str) -> None:
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif action == "abort":
        os.abort()
    elif action == "hang":
        time.sleep(3600)
    elif action == "nospace":
        raise OSError(errno.ENOSPC, f"failpoint {name}")
    elif action == "cuda":
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    elif action == "oom":
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
    else:
        raise RuntimeError(f"failpoint {name}")
