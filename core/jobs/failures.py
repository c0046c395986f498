"""What to do about an attempt that failed: never again, later, in less memory, or in a new process."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from core.edit.outputs import is_disk_full
from core.errors import KontextError

BACKOFF_MS = 15_000
BACKOFF_CAP_MS = 15 * 60_000


class Remedy(Enum):
    DEAD = "dead"
    """The same input fails the same way."""
    LATER = "later"
    """Something passed by: try again after a while."""
    SMALLER = "smaller"
    """Out of memory: try again in a smaller working set."""
    NEW_PROCESS = "new process"
    """The GPU's context is broken for this process, whatever comes next."""
    PAUSE = "pause"
    """No room on the disk: the queue waits for it, the job is not to blame."""


@dataclass(frozen=True)
class Failure:
    kind: str
    message: str
    remedy: Remedy


def classify(error: BaseException) -> Failure:
    """The class of an error that ended an attempt."""
    if is_disk_full(error):
        return Failure("disk_full", _line(error), Remedy.PAUSE)
    if isinstance(error, KontextError):
        return Failure(error.kind, str(error), Remedy.DEAD)
    text = _line(error)
    if isinstance(error, MemoryError) or "out of memory" in text.lower():
        return Failure("out_of_memory", text, Remedy.SMALLER)
    if "CUDA error" in text or "cuDNN" in text or "CUBLAS" in text or type(error).__name__ == "AcceleratorError":
        return Failure("cuda", text, Remedy.NEW_PROCESS)
    return Failure("error", f"{type(error).__name__}: {text}", Remedy.LATER)


def backoff_ms(attempt: int, chance: Callable[[float, float], float] = random.uniform) -> int:
    """How long to wait after the `attempt`-th try: doubling from 15 s to at most 15 min, the upper half at random."""
    longest = min(BACKOFF_MS * 2 ** max(attempt - 1, 0), BACKOFF_CAP_MS)
    return int(longest * chance(0.5, 1.0))


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
