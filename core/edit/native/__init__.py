"""The `torch` runtime on a GPU: fused low-bit products, cuDNN's attention, Triton between them, steps as CUDA graphs.

`flux` is the step; `kernels` computes on a GPU what `plain` says; `graphs` replays. Light: no torch before a call.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FIRST_WITH_FP8 = 89
"""Compute capability: RTX 40; Hopper is 90."""


def serves(device: torch.device) -> bool:
    """Whether a device has FP8 tensor cores."""
    import torch

    if device.type != "cuda":
        return False
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor >= FIRST_WITH_FP8


def can_compile() -> bool:
    """Whether a GPU's kernels can be compiled: where Triton and a C compiler are, unless KONTEXT_TUI_COMPILE is 0."""
    wanted = os.environ.get("KONTEXT_TUI_COMPILE", "1") != "0"
    return (
        wanted and importlib.util.find_spec("triton") is not None and bool(shutil.which("cc") or shutil.which("gcc"))
    )
