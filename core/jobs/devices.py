"""Which devices there are to work on, asked of the driver before torch is imported."""

from __future__ import annotations

import os
import re
from pathlib import Path

from core.errors import UnavailableError, UsageError

GPUS = Path("/proc/driver/nvidia/gpus")


def gpu_count() -> int:
    """NVIDIA GPUs that this process may use."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([entry for entry in visible.split(",") if entry.strip() not in ("", "-1")])
    return len(list(GPUS.iterdir())) if GPUS.is_dir() else 0


def resolve(choice: str) -> list[str]:
    """The devices that `--gpus` names: auto (the first GPU, else the CPU), all, cpu, or numbers such as 0,1.

    Raises UsageError for what is none of these, UnavailableError for a GPU that is not there.
    """
    count = gpu_count()
    if choice == "cpu" or (choice in ("auto", "all") and not count):
        return ["cpu"]
    if choice in ("auto", "all"):
        return [f"cuda:{index}" for index in range(1 if choice == "auto" else count)]
    if not re.fullmatch(r"\d{1,3}(,\d{1,3})*", choice):
        raise UsageError(f"--gpus {choice!r}: give auto, all, cpu, or numbers such as 0,1")
    numbers = sorted({int(number) for number in choice.split(",")})
    if numbers[-1] >= count:
        raise UnavailableError(f"there is no GPU {numbers[-1]} here, of {count}; `--gpus cpu` works without one")
    return [f"cuda:{number}" for number in numbers]
